"""Benchmarks: every figure is a ratio to a limit or a peer that was timed in the same run."""
