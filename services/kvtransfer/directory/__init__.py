"""The directory: who is alive and what it serves. Soft state, never on a request's path; never torch."""
