"""Experiments that span stages: each is a command that prints what docs/results.md quotes."""
