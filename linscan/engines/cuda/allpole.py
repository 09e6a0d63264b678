"""Time-varying all-pole filters on the GPU: rows in chunks for up to 4 lags, a thread to a row for more."""

import math
from functools import lru_cache

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.chunks import MAX_ORDER, by_row, cut
from linscan.engines.cuda.layout import layout, strides

_THREADS = 128  # of a block; THREADS in allpole.cu
_MAX_LAGS = 4  # whose chunks are composed; LAGS in allpole.cu
_layout = lru_cache(maxsize=4096)(layout)


def allpole(a: Array, x: Array, zi: Array, *, axis, workers) -> Array:
    """See `linscan.ops.allpole.allpole`; `a` is (…, K), `zi` (rows, K) with the newest output first."""
    with x.device:
        y, lags = cupy.empty(x.shape, x.dtype), a.shape[-1]
        if lags == 0:
            y[...] = x
        elif x.size:
            _filter(a, x, y, zi, axis, lags)
    return y


def _filter(a: Array, x: Array, y: Array, zi: Array, axis: int, lags: int) -> None:
    length, batch = x.shape[axis], x.shape[:axis] + x.shape[axis + 1 :]
    parts = cut(length, lags if lags <= _MAX_LAGS else MAX_ORDER + 1)
    slopes = a[..., 0]
    operands = tuple(None if v is None else strides(v, axis) for v in (slopes, x, None, y, None, None, None))
    whole = operands[0] and operands[1] and a.strides[-1] % a.itemsize == 0
    plan = _layout(batch, length, parts.size, False, operands) if whole else None
    if plan is None:  # over six batch axes, or strides that are not whole elements
        return _filter(cupy.ascontiguousarray(a), cupy.ascontiguousarray(x), y, zi, axis, lags)
    rows, lag, by_rows = math.prod(batch), a.strides[-1] // a.itemsize, int(any(n != 1 for n in x.shape[axis + 1 :]))
    start = by_row(zi, len(batch))
    states, stop, blocks = None, None, -(-rows * parts.chunks // _THREADS)
    run = kernel("allpole.cu", "run", x.dtype.name, ("LAGS", lags))
    if parts.chunks > 1:
        states = cupy.empty(rows * parts.chunks * lags, x.dtype)
        matrices = cupy.empty(rows * parts.chunks * lags**2, x.dtype)
        stop = cupy.empty(rows, np.int64)
        reduce, carry = (kernel("allpole.cu", name, x.dtype.name, ("LAGS", lags)) for name in ("reduce", "carry"))
        reduce((blocks,), (_THREADS,), (plan, a, x, states, matrices, lag, parts.size, by_rows))
        owners = _THREADS // (1 << (lags - 1).bit_length())
        carry((-(-rows // owners),), (_THREADS,), (rows, parts.chunks, states, matrices, *start, stop))
    run((blocks,), (_THREADS,), (plan, a, x, y, states, stop, *start, lag, parts.size, by_rows))
    return None
