"""Block scan kernels, backwards: what the pullback runs against the direction of the scan.

As in `block_rows`. `flow` (R, n) is ``A[t+1]^H δ[t+1]``, and `initial` (R, n) the states before the first steps. `dA`
may be None, where one matrix serves all steps and its gradient is a matrix product.
"""

import numpy as np

from linscan.engines.cpu.block_rows import U, _begin
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals


@jit
def rows2_back(A, h, dh, starts, initial, dA, db, flow, first, sizes, lo, hi, reverse):
    """``δ[t] = dh[t] + A[t+1]^H δ[t+1]`` into `db`, ``δ[t] h[t-1]^H`` into `dA`, with 2 x 2 matrices."""
    mode = flush_subnormals()
    zero = A.dtype.type(0)
    for r in range(lo, hi):
        pa, p, q, across, up, one = _begin(r, first, 2, sizes, not reverse)
        f, g = flow[r, 0], flow[r, 1]
        for i in range(sizes[0]):
            s, t = dh[p] + f, dh[p + U[1]] + g
            db[p], db[p + U[1]] = s, t
            x, y = initial[r, 0], initial[r, 1]
            if i < sizes[0] - 1:
                x, y = h[p + up], h[p + up + U[1]]
            f = np.conj(A[pa]) * s + np.conj(A[pa + U[2]]) * t
            g = np.conj(A[pa + U[1]]) * s + np.conj(A[pa + U[3]]) * t
            x, y = np.conj(x), np.conj(y)
            kept = starts is None or not starts[q]
            if not kept:
                f = g = zero
            if dA is not None:
                o = q * U[4]
                dA[o], dA[o + U[1]] = (s * x, s * y) if kept else (zero, zero)
                dA[o + U[2]], dA[o + U[3]] = (t * x, t * y) if kept else (zero, zero)
            pa, p, q = pa + across, p + up, q + one
        flow[r, 0], flow[r, 1] = f, g
    restore_subnormals(mode)


@jit
def rows3_back(A, h, dh, starts, initial, dA, db, flow, first, sizes, lo, hi, reverse):
    """The same with 3 x 3 matrices."""
    mode = flush_subnormals()
    zero = A.dtype.type(0)
    for r in range(lo, hi):
        pa, p, q, across, up, one = _begin(r, first, 3, sizes, not reverse)
        e, f, g = flow[r, 0], flow[r, 1], flow[r, 2]
        for i in range(sizes[0]):
            s, t, u = dh[p] + e, dh[p + U[1]] + f, dh[p + U[2]] + g
            db[p], db[p + U[1]], db[p + U[2]] = s, t, u
            x, y, z = initial[r, 0], initial[r, 1], initial[r, 2]
            if i < sizes[0] - 1:
                x, y, z = h[p + up], h[p + up + U[1]], h[p + up + U[2]]
            e = np.conj(A[pa]) * s + np.conj(A[pa + U[3]]) * t + np.conj(A[pa + U[6]]) * u
            f = np.conj(A[pa + U[1]]) * s + np.conj(A[pa + U[4]]) * t + np.conj(A[pa + U[7]]) * u
            g = np.conj(A[pa + U[2]]) * s + np.conj(A[pa + U[5]]) * t + np.conj(A[pa + U[8]]) * u
            x, y, z = np.conj(x), np.conj(y), np.conj(z)
            kept = starts is None or not starts[q]
            if not kept:
                e = f = g = zero
            if dA is not None:
                o = q * U[9]
                for d in (s, t, u):
                    dA[o], dA[o + U[1]], dA[o + U[2]] = (d * x, d * y, d * z) if kept else (zero, zero, zero)
                    o += U[3]
            pa, p, q = pa + across, p + up, q + one
        flow[r, 0], flow[r, 1], flow[r, 2] = e, f, g
    restore_subnormals(mode)


@jit
def rows4_back(A, h, dh, starts, initial, dA, db, flow, first, sizes, lo, hi, reverse):
    """The same with 4 x 4 matrices."""
    mode = flush_subnormals()
    zero = A.dtype.type(0)
    for r in range(lo, hi):
        pa, p, q, across, up, one = _begin(r, first, 4, sizes, not reverse)
        c, e, f, g = flow[r, 0], flow[r, 1], flow[r, 2], flow[r, 3]
        for i in range(sizes[0]):
            s, t, u, v = dh[p] + c, dh[p + U[1]] + e, dh[p + U[2]] + f, dh[p + U[3]] + g
            db[p], db[p + U[1]], db[p + U[2]], db[p + U[3]] = s, t, u, v
            x, y, z, w = initial[r, 0], initial[r, 1], initial[r, 2], initial[r, 3]
            if i < sizes[0] - 1:
                k = p + up
                x, y, z, w = h[k], h[k + U[1]], h[k + U[2]], h[k + U[3]]
            c = e = f = g = zero
            kept, row = starts is None or not starts[q], pa
            if kept:
                for d in (s, t, u, v):
                    c, e = c + np.conj(A[row]) * d, e + np.conj(A[row + U[1]]) * d
                    f, g = f + np.conj(A[row + U[2]]) * d, g + np.conj(A[row + U[3]]) * d
                    row += U[4]
            if dA is not None:
                o = q * U[4] * U[4]
                x, y, z, w = np.conj(x), np.conj(y), np.conj(z), np.conj(w)
                for d in (s, t, u, v):
                    dA[o], dA[o + U[1]] = (d * x, d * y) if kept else (zero, zero)
                    dA[o + U[2]], dA[o + U[3]] = (d * z, d * w) if kept else (zero, zero)
                    o += U[4]
            pa, p, q = pa + across, p + up, q + one
        flow[r, 0], flow[r, 1], flow[r, 2], flow[r, 3] = c, e, f, g
    restore_subnormals(mode)


@jit
def _column(A, k, d, o, dA, x, total):
    """One number of ``A^H δ`` and one of ``δ h^H``: `d` is δ in this row, `x` conj(h) in this column."""
    if dA is not None:
        dA[o] = d * x
    return total + np.conj(A[k]) * d


@jit
def _step_any(A, pa, db, p, before, at, dA, o, carried, n):
    """``A^H δ`` into `carried` and ``δ h^H`` into `dA`, four columns at a time, which lie side by side."""
    width, j, zero = np.uintp(n), U[0], A.dtype.type(0)
    for _ in range(n // 4):
        x, y = np.conj(before[at + j]), np.conj(before[at + j + U[1]])
        z, w = np.conj(before[at + j + U[2]]), np.conj(before[at + j + U[3]])
        e, f, g, h, k, m = zero, zero, zero, zero, pa + j, o + j
        for i in range(width):
            d = db[p + i]
            e, f = _column(A, k, d, m, dA, x, e), _column(A, k + U[1], d, m + U[1], dA, y, f)
            g, h = _column(A, k + U[2], d, m + U[2], dA, z, g), _column(A, k + U[3], d, m + U[3], dA, w, h)
            k, m = k + width, m + width
        carried[j], carried[j + U[1]], carried[j + U[2]], carried[j + U[3]] = e, f, g, h
        j += U[4]
    for _ in range(n % 4):
        x, e, k, m = np.conj(before[at + j]), zero, pa + j, o + j
        for i in range(width):
            e = _column(A, k, db[p + i], m, dA, x, e)
            k, m = k + width, m + width
        carried[j] = e
        j += U[1]


@jit
def rows_any_back(A, h, dh, starts, initial, dA, db, flow, first, sizes, lo, hi, reverse):
    """The same with matrices of any size; `flow` is carried in memory."""
    mode = flush_subnormals()
    n = flow.shape[1]
    width = np.uintp(n)
    for r in range(lo, hi):
        pa, p, q, across, up, one = _begin(r, first, n, sizes, not reverse)
        carried = flow[r]
        for i in range(sizes[0]):
            for j in range(width):
                db[p + j] = dh[p + j] + carried[j]
            o = q * width * width
            if starts is not None and starts[q]:
                carried[:] = 0
                if dA is not None:
                    dA[o : o + width * width] = 0
            else:
                before, at = initial[r], U[0]
                if i < sizes[0] - 1:
                    before, at = h, p + up
                _step_any(A, pa, db, p, before, at, dA, o, carried, n)
            pa, p, q = pa + across, p + up, q + one
    restore_subnormals(mode)
