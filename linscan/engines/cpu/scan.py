"""First-order scans on the CPU: a loop over time in every row, several rows in flight to hide its latency.

One row alone is bound by the latency of a multiply-add. Four neighbouring rows run side by side instead, each a few
cache lines behind the one before: at equal positions, rows of a power-of-two length would all fall into the same
cache set and evict each other. With channels last, one time step is a vector operation on contiguous memory.
"""

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for

_GRAIN = 1 << 15  # elements a thread must get for its hand-over (about 30 us) to pay
_STAGGER = 64  # elements between neighbouring rows in flight


def scan(a: Array, b: Array, h0: Array | None, *, axis, reverse, reset, out, workers) -> Array:
    """See `linscan.ops.scan.scan`; `a` and `b` are broadcast, of one dtype."""
    dtype, compute = b.dtype, accum_dtype(b.dtype)
    h = out if out is not None and dtype == compute and out.flags.c_contiguous else np.empty(b.shape, compute)
    if h.size:
        a3, b3, h3, reset3 = _as_3d(axis, a, b, h, reset)
        start = np.zeros(h3.shape[::2], compute) if h0 is None else h0.astype(compute).reshape(h3.shape[::2])
        _run(_rows if h3.shape[2] == 1 else _columns, (a3, b3, h3), start, reset3, reverse, workers)
    if out is not None and h is not out:
        out[...] = h
        return out
    return h.astype(dtype, copy=False)


def scan_pullback(a: Array, h: Array, h0: Array | None, dh: Array, *, axis, reverse, reset, workers):
    """See `linscan.ops.scan.scan_vjp`: the gradients of `a`, `b` and `h0`, unreduced over broadcast axes."""
    dtype, compute = h.dtype, accum_dtype(h.dtype)
    da, db = np.empty(h.shape, compute), np.empty(h.shape, compute)
    dh0 = np.zeros(h.shape[:axis] + h.shape[axis + 1 :], compute)
    if h.size:
        a3, h3, dh3, da3, db3, reset3 = _as_3d(axis, a, h, dh, da, db, reset)
        start = np.zeros(h3.shape[::2], compute) if h0 is None else h0.astype(compute).reshape(h3.shape[::2])
        arrays = (a3, h3, dh3, start, da3, db3)
        _run(_rows_back if h3.shape[2] == 1 else _columns_back, arrays, dh0.reshape(h3.shape[::2]), reset3, reverse, workers)
    return tuple(x.astype(dtype, copy=False) for x in (da, db, dh0))


def _as_3d(axis: int, *arrays):
    """Views of shape (outer, T, inner); 16-bit storage as float32. A view that cannot be folded so is copied."""
    views = []
    for x in arrays:
        if x is None:
            views.append(None)
            continue
        if x.dtype != bool:
            x = x.astype(accum_dtype(x.dtype), copy=False)
        shape = x.shape
        outer, inner = int(np.prod(shape[:axis], dtype=np.intp)), int(np.prod(shape[axis + 1 :], dtype=np.intp))
        views.append(x.reshape(outer, shape[axis], inner))
    return views
