"""The operator tool; imports clients only."""
