"""Benchmarks: every figure is a ratio to a limit or a peer that was timed in the same run."""

import os

# Before NumPy is loaded: BLAS's threads would spin for 2²⁸ cycles after a product, on a core of what is timed next.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
