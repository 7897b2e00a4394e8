"""What the router decides with: candidates, needs, one policy a file, slow start, ejections. Pure, all of it."""
