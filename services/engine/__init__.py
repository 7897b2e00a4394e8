"""The model engine: blocks, paged KV, attention, runner, sampler. Knows nothing of gRPC or of other processes."""
