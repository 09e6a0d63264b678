"""Products of matrices on the CPU, on our own threads: those of BLAS, once awake, keep the cores busy for a while.

The sum of an entry runs over the inner index in order, whatever the number of rows and threads.
"""

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu import dense_loops
from linscan.engines.cpu.gemm import COLUMNS
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.cpu.rows import flat
from linscan.engines.reference import dense as reference

_ALONE = 1 << 18  # multiply-adds up to which BLAS works in the calling thread, and below which a thread does not pay
_GROUPS = 16  # of rows, whose sums are made apart
_SUMS = 1 << 23  # entries they may have together


def dense(x: Array, w: Array, b: Array | None) -> Array:
    """See `linscan.engines.reference.dense`."""
    n, (inner, width) = len(x), w.shape
    work = inner * width
    if n * work <= _ALONE:
        return reference.dense(x, w, b)
    y, entries = np.empty((n, width), x.dtype), flat(x, x.dtype)
    shift = flat(_padded(np.zeros(width, x.dtype) if b is None else b), x.dtype)
    panels = flat(_padded(w).reshape(inner, -1, COLUMNS).swapaxes(0, 1), x.dtype)
    blocks = -(-n // dense_loops.BLOCK)

    def body(lo: int, hi: int) -> None:
        dense_loops.product(entries, panels, shift, y.reshape(-1), (n, inner, width), lo, hi)

    parallel_for(body, blocks, grain=-(-_ALONE // (work * dense_loops.BLOCK)))
    return y


def dense_pullback(x: Array, dy: Array, bias: bool) -> tuple[Array, Array | None]:
    """See `linscan.engines.reference.dense`."""
    n, inner, width = len(x), x.shape[1], dy.shape[1]
    if n * inner * width <= _ALONE:
        return reference.dense_pullback(x, dy, bias)
    tall, wide = -(-inner // 8) * 8, -(-width // COLUMNS) * COLUMNS
    chunks = -(-n // dense_loops.CHUNK)
    groups = max(1, min(_GROUPS, chunks, _SUMS // (tall * wide)))
    dw, db = np.zeros((groups, tall, wide), x.dtype), np.zeros((groups, wide), x.dtype)
    left, right = flat(x, x.dtype), flat(dy, x.dtype)

    def body(lo: int, hi: int) -> None:
        for i in range(lo, hi):
            rows = [min(n, chunks * k // groups * dense_loops.CHUNK) for k in (i, i + 1)]
            dense_loops.outer(left, right, dw[i].reshape(-1), db[i], (inner, width), *rows)

    parallel_for(body, groups)
    return np.ascontiguousarray(dw.sum(0)[:inner, :width]), db.sum(0)[:width] if bias else None


def _padded(x: Array) -> Array:
    """`x` with zeros behind its last axis, to whole tiles."""
    more = -x.shape[-1] % COLUMNS
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]) if more else x
