"""Attention over packed tokens and paged KV: one signature, several backends."""
