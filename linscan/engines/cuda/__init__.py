"""Loops on NVIDIA GPUs: CuPy launchers, with the device code beside them (``.cu``, shared headers ``.cuh``)."""
