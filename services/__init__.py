"""Baton: prefill and decode of large language models in separate gRPC services."""
