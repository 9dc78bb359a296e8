"""Benchmarks: `python -m benchmarks.executor`."""
