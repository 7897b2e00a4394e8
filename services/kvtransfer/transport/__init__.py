"""Transports that carry tensors between two workers: gloo, NCCL and memory."""
