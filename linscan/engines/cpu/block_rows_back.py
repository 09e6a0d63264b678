"""Block scan kernels, backwards: what the pullback runs against the direction of the scan.

As in `block_rows`, with one row at a time: there are more bytes to move for every step that waits. `flow` (R, n) is
``A[t+1]^H δ[t+1]``, and `initial` (R, n) the states before the first steps. `dA` may be None, where one matrix serves
all steps and its gradient is a matrix product.
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
                carried[j] = 0
            before, at = initial[r], U[0]
            if i < sizes[0] - 1:
                before, at = h, p + up
            kept = starts is None or not starts[q]
            o = q * width * width
            for k in range(width):
                delta, row = db[p + k], pa + k * width
                if kept:
                    for j in range(width):
                        carried[j] += np.conj(A[row + j]) * delta
                if dA is not None:
                    for j in range(width):
                        dA[o + j] = delta * np.conj(before[at + j]) if kept else 0
                    o += width
            pa, p, q = pa + across, p + up, q + one
    restore_subnormals(mode)
