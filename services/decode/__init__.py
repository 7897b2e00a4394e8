"""The decode tier: takes KV over and runs requests to their end."""
