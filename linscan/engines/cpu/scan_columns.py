"""Scan kernels for channels last: one time step is a vector operation on contiguous memory.

Arrays are flat, of shape (T, D) in C order; an input that is only repeated along T has stride 0.
"""

import numpy as np

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.scan_lanes import across8, across8_back
from linscan.engines.cpu.simd import LANES


@jit
def columns(a, b, h, state, strides, shape, lo, hi, reverse):
    """``h[t] = a[t] h[t-1] + b[t]`` in columns `lo` to `hi`; `state` (D,) goes from initial to final.

    `strides` are those of `a`, `b` and `h` along time, in elements.
    """
    mode = flush_subnormals()
    length, width = shape
    lanes, one = np.uintp(LANES), np.uintp(1)
    before, q = state, np.uintp(lo)
    for i in range(length):
        t = length - 1 - i if reverse else i
        pa, pb, p = np.uintp(t * strides[0] + lo), np.uintp(t * strides[1] + lo), np.uintp(t * width + lo)
        for _ in range((hi - lo) // LANES):
            across8(a, b, before, h, pa, pb, q, p)
            pa, pb, p, q = pa + lanes, pb + lanes, p + lanes, q + lanes
        for _ in range((hi - lo) % LANES):
            h[p] = a[pa] * before[q] + b[pb]
            pa, pb, p, q = pa + one, pb + one, p + one, q + one
        before, q = h, np.uintp(t * width + lo)
    for d in range(lo, hi):
        state[np.uintp(d)] = before[q + np.uintp(d - lo)]
    restore_subnormals(mode)


@jit
def columns_back(a, h, dh, initial, da, db, flow, strides, shape, lo, hi, reverse):
    """The pullback, against the direction of the scan; `flow` is ``conj(a[t+1]) δ[t+1]``, `initial` the state before.

    `strides` are those of `a`, `h` and `dh` along time, in elements.
    """
    mode = flush_subnormals()
    length, width = shape
    lanes, one = np.uintp(LANES), np.uintp(1)
    for i in range(length):
        t = i if reverse else length - 1 - i
        pa, pg, p = np.uintp(t * strides[0] + lo), np.uintp(t * strides[2] + lo), np.uintp(t * width + lo)
        before, q, f = initial, np.uintp(lo), np.uintp(lo)
        if i < length - 1:
            before, q = h, np.uintp((t + 1 if reverse else t - 1) * strides[1] + lo)
        for _ in range((hi - lo) // LANES):
            across8_back(a, before, dh, flow, da, db, pa, q, pg, f, p)
            pa, pg, p, q, f = pa + lanes, pg + lanes, p + lanes, q + lanes, f + lanes
        for _ in range((hi - lo) % LANES):
            delta = dh[pg] + flow[f]
            db[p] = delta
            da[p] = np.conj(before[q]) * delta
            flow[f] = np.conj(a[pa]) * delta
            pa, pg, p, q, f = pa + one, pg + one, p + one, q + one, f + one
    restore_subnormals(mode)
