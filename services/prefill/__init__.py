"""The prefill tier: runs prompts to their first token and serves their KV."""
