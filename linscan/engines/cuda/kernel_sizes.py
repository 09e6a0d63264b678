"""The sizes `ssm_kernel` is cut into on the GPU: no CuPy here, for tests on any machine."""

import numpy as np

from linscan._arrays import real_dtype

WIDTH = 128  # lags of a row of the matrix product: 2**7, as the device code knows


def rows_of(length: int, dtype: np.dtype) -> int:
    """Rows of one block: few where the kernel is short, so that blocks are many and full."""
    largest = 64 if dtype.itemsize >= (16 if dtype.kind == "c" else 8) else 128
    return next((rows for rows in (32, 64) if length <= rows * WIDTH and rows < largest), largest)


def tiles_of(length: int, rows: int) -> int:
    return -(-length // (rows * WIDTH))


def growth_limit(length: int, dtype: np.dtype) -> float:
    """The ``|a|**2`` above which tables might overflow before the kernel does."""
    single = real_dtype(dtype).itemsize <= 4
    return float(np.exp2(2 * (60 if single else 500) / length))


def output_dtype(dtype: np.dtype, real: bool) -> np.dtype:
    return real_dtype(dtype) if real else dtype
