"""What prefill and decode processes share: how settings become an engine, a worker and a running process."""
