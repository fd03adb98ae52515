"""Benchmarks against named peers: `make bench`, or `python -m bench NAME`. Each prints a ratio of medians."""
