"""Measures Baton: clusters through the public API, and the engine and the handoff alone. See README.md."""
