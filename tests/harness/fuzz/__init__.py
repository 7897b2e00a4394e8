"""Fuzzing of every RPC, from the descriptors of what is served."""
