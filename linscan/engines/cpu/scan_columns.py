"""Scan kernels for channels last: one time step is a vector operation on contiguous memory.

Arrays are flat, of shape (T, D) in C order; an input that is only repeated along T has stride 0. Where time runs
backwards so do the channels: memory is then one falling stream, which the hardware can follow.
"""

import numpy as np

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.scan_lanes import across8, across8_back
from linscan.engines.cpu.simd import LANES


@jit
def _order(lo, hi, down):
    """How vectors go over columns `lo` to `hi`: the first one, the step, how many; and the first column left over."""
    whole = (hi - lo) // LANES
    first = lo + (whole - 1) * LANES if down else lo
    return np.uintp(first), np.uintp(0) - np.uintp(LANES) if down else np.uintp(LANES), whole, lo + whole * LANES


@jit
def columns(a, b, h, state, strides, shape, lo, hi, reverse):
    """``h[t] = a[t] h[t-1] + b[t]`` in columns `lo` to `hi`; `state` (D,) goes from initial to final.

    `strides` are those of `a`, `b` and `h` along time, in elements.
    """
    mode = flush_subnormals()
    length, width = shape
    first, step, whole, rest = _order(lo, hi, reverse)
    before, q0 = state, np.uintp(0)
    for i in range(length):
        t = length - 1 - i if reverse else i
        pa0, pb0, p0 = np.uintp(t * strides[0]), np.uintp(t * strides[1]), np.uintp(t * width)
        d = first
        for _ in range(whole):
            across8(a, b, before, h, pa0 + d, pb0 + d, q0 + d, p0 + d)
            d += step
        for k in range(rest, hi):
            d = np.uintp(k)
            h[p0 + d] = a[pa0 + d] * before[q0 + d] + b[pb0 + d]
        before, q0 = h, p0
    for k in range(lo, hi):
        state[np.uintp(k)] = before[q0 + np.uintp(k)]
    restore_subnormals(mode)


@jit
def columns_back(a, h, dh, initial, da, db, flow, strides, shape, lo, hi, reverse):
    """The pullback, against the direction of the scan; `flow` is ``conj(a[t+1]) δ[t+1]``, `initial` the state before.

    `strides` are those of `a`, `h` and `dh` along time, in elements.
    """
    mode = flush_subnormals()
    length, width = shape
    first, step, whole, rest = _order(lo, hi, not reverse)
    for i in range(length):
        t = i if reverse else length - 1 - i
        pa0, pg0, p0 = np.uintp(t * strides[0]), np.uintp(t * strides[2]), np.uintp(t * width)
        before, q0 = initial, np.uintp(0)
        if i < length - 1:
            before, q0 = h, np.uintp((t + 1 if reverse else t - 1) * strides[1])
        d = first
        for _ in range(whole):
            across8_back(a, before, dh, flow, da, db, pa0 + d, q0 + d, pg0 + d, d, p0 + d)
            d += step
        for k in range(rest, hi):
            d = np.uintp(k)
            delta = dh[pg0 + d] + flow[d]
            db[p0 + d] = delta
            da[p0 + d] = np.conj(before[q0 + d]) * delta
            flow[d] = np.conj(a[pa0 + d]) * delta
    restore_subnormals(mode)
