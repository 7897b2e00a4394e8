"""What the Makefile's verbs run; each file is a program of its own."""
