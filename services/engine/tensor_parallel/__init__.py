"""Tensor parallelism: one model whose heads and columns are divided between the ranks of a worker."""
