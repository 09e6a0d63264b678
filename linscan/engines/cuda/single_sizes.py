"""What float32 matrix states take of a multiprocessor where tensor cores multiply them: see single_chunk.cuh."""

import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import shared_limit
from linscan.engines.cuda.head_layout import has_tensor_cores

THREADS = 2  # for each column of the state
_STEPS, _PAD = 64, 8
_WIDEST = 128  # keys, or values


def takes(x: Array, keys: int, values: int) -> bool:
    """Whether the GPU of `x` does; what keys are in one pass are values in another."""
    wide = max(keys, values)
    fine = x.dtype == np.float32 and wide <= _WIDEST and has_tensor_cores(x)
    return fine and shared(*tile(wide, wide)) <= shared_limit(x)


def tile(keys: int, values: int) -> tuple[int, int]:
    """Keys and values of a block: all of them."""
    return -(-keys // 64) * 64, -(-values // 64) * 64


def shared(keys: int, width: int) -> int:
    """Bytes of the struct ``Shared``."""
    split, whole = 8 * (keys + _PAD) + 4 * (_STEPS + _PAD) + 4 * (16 + _PAD), 8 * keys + 8 * (width + 4)
    return _STEPS * (split + whole + 76) + width // 4 + 64
