"""Moves KV between workers: the library that both tiers mount, and the directory process."""
