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


def bits_of(length: int, rows: int) -> int:
    """Bits of the largest exponent of a table, which reaches to the end of the last tile, past the kernel's."""
    return (tiles_of(length, rows) * rows * WIDTH).bit_length()


def growth_limit(length: int, rows: int, dtype: np.dtype) -> float:
    """The ``|a|**2`` above which tables might overflow."""
    single = real_dtype(dtype).itemsize <= 4
    return float(np.exp2(2 * (60 if single else 500) / (tiles_of(length, rows) * rows * WIDTH)))


def output_dtype(dtype: np.dtype, real: bool) -> np.dtype:
    return real_dtype(dtype) if real else dtype
