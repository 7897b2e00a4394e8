"""Other engines on the same checkpoints and prompts; each runs in a process and a virtual environment of its own."""
