"""The scan and the short filter as Numba-CUDA kernels: for Numba device arrays and CuPy arrays, and to read."""
