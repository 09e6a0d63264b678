"""Numba loops over row or time ranges, run on a thread pool of our own."""
