"""Block scan kernels, forwards: the state of 2, 3 or 4 numbers in registers, any other in memory.

Arrays are indexed flat and unsigned: a signed index costs a test for negative values at every access. A kernel takes
rows `lo` to `hi` of `length` steps stored one after the other; the matrices of row r begin at ``first[r]`` and are
`stride` elements apart, 0 where one matrix serves all steps. `starts` may be None. `state` (R, n) goes from initial to
final. A step waits for the one before it, with 2 x 2 matrices longer than for memory; two rows side by side wait less,
one lagging behind so that they do not evict each other from the cache where their distance is a power of two.
"""

import numpy as np

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals

U = tuple(np.uintp(i) for i in range(16))  # an unsigned index plus a plain integer would be a float
LAG = 64


@jit
def _begin(r, first, n, sizes, reverse):
    """Where row r begins, in the matrices, in the vectors and in the resets; and the three steps."""
    length, stride = sizes
    last = length - 1 if reverse else 0
    pa, q = np.uintp(first[r] + last * stride), np.uintp(r * length + last)
    step, up = np.uintp(stride), np.uintp(n)
    if reverse:
        return pa, q * up, q, U[0] - step, U[0] - up, U[0] - U[1]
    return pa, q * up, q, step, up, U[1]


@jit
def _step2(A, pa, b, p, starts, q, h, state):
    x, y = state
    s, t = b[p], b[p + U[1]]
    if starts is None or not starts[q]:
        s = s + A[pa] * x + A[pa + U[1]] * y
        t = t + A[pa + U[2]] * x + A[pa + U[3]] * y
    h[p], h[p + U[1]] = s, t
    return s, t


@jit
def _step3(A, pa, b, p, starts, q, h, state):
    x, y, z = state
    s, t, u = b[p], b[p + U[1]], b[p + U[2]]
    if starts is None or not starts[q]:
        s = s + A[pa] * x + A[pa + U[1]] * y + A[pa + U[2]] * z
        t = t + A[pa + U[3]] * x + A[pa + U[4]] * y + A[pa + U[5]] * z
        u = u + A[pa + U[6]] * x + A[pa + U[7]] * y + A[pa + U[8]] * z
    h[p], h[p + U[1]], h[p + U[2]] = s, t, u
    return s, t, u


@jit
def _step4(A, pa, b, p, starts, q, h, state):
    x, y, z, w = state
    s, t, u, v = b[p], b[p + U[1]], b[p + U[2]], b[p + U[3]]
    if starts is None or not starts[q]:
        s = s + A[pa] * x + A[pa + U[1]] * y + A[pa + U[2]] * z + A[pa + U[3]] * w
        t = t + A[pa + U[4]] * x + A[pa + U[5]] * y + A[pa + U[6]] * z + A[pa + U[7]] * w
        u = u + A[pa + U[8]] * x + A[pa + U[9]] * y + A[pa + U[10]] * z + A[pa + U[11]] * w
        v = v + A[pa + U[12]] * x + A[pa + U[13]] * y + A[pa + U[14]] * z + A[pa + U[15]] * w
    h[p], h[p + U[1]], h[p + U[2]], h[p + U[3]] = s, t, u, v
    return s, t, u, v


@jit
def rows2(A, b, starts, h, state, first, sizes, lo, hi, reverse):
    """``h[t] = A[t] h[t-1] + b[t]`` with 2 x 2 matrices, two rows side by side, the second one LAG steps behind."""
    mode = flush_subnormals()
    for r in range(lo, hi, 2):
        other = min(r + 1, hi - 1)
        behind = min(LAG, sizes[0]) if other > r else 0
        x, y = (state[r, 0], state[r, 1]), (state[other, 0], state[other, 1])
        pa, p, q, across, up, one = _begin(r, first, 2, sizes, reverse)
        pc, k, m, _, _, _ = _begin(other, first, 2, sizes, reverse)
        for _ in range(behind if behind else sizes[0]):
            x = _step2(A, pa, b, p, starts, q, h, x)
            pa, p, q = pa + across, p + up, q + one
        for _ in range(sizes[0] - behind if behind else 0):
            x = _step2(A, pa, b, p, starts, q, h, x)
            y = _step2(A, pc, b, k, starts, m, h, y)
            pa, p, q, pc, k, m = pa + across, p + up, q + one, pc + across, k + up, m + one
        for _ in range(behind):
            y = _step2(A, pc, b, k, starts, m, h, y)
            pc, k, m = pc + across, k + up, m + one
        for i in range(2):
            state[r, i] = x[i]
            if behind:
                state[other, i] = y[i]
    restore_subnormals(mode)


@jit
def rows3(A, b, starts, h, state, first, sizes, lo, hi, reverse):
    """The same with 3 x 3 matrices."""
    mode = flush_subnormals()
    for r in range(lo, hi):
        x = state[r, 0], state[r, 1], state[r, 2]
        pa, p, q, across, up, one = _begin(r, first, 3, sizes, reverse)
        for _ in range(sizes[0]):
            x = _step3(A, pa, b, p, starts, q, h, x)
            pa, p, q = pa + across, p + up, q + one
        for i in range(3):
            state[r, i] = x[i]
    restore_subnormals(mode)


@jit
def rows4(A, b, starts, h, state, first, sizes, lo, hi, reverse):
    """The same with 4 x 4 matrices."""
    mode = flush_subnormals()
    for r in range(lo, hi):
        x = state[r, 0], state[r, 1], state[r, 2], state[r, 3]
        pa, p, q, across, up, one = _begin(r, first, 4, sizes, reverse)
        for _ in range(sizes[0]):
            x = _step4(A, pa, b, p, starts, q, h, x)
            pa, p, q = pa + across, p + up, q + one
        for i in range(4):
            state[r, i] = x[i]
    restore_subnormals(mode)


@jit
def rows_any(A, b, starts, h, state, first, sizes, lo, hi, reverse):
    """The same with matrices of any size, four numbers at a time; the state before a step is read back from `h`."""
    mode = flush_subnormals()
    n = state.shape[1]
    width = np.uintp(n)
    for r in range(lo, hi):
        pa, p, q, across, up, one = _begin(r, first, n, sizes, reverse)
        before, at = state[r], U[0]
        for _ in range(sizes[0]):
            row, k = pa, p
            carries = starts is None or not starts[q]
            for _ in range(n // 4):
                s, t, u, v = b[k], b[k + U[1]], b[k + U[2]], b[k + U[3]]
                if carries:
                    row2, row3, row4 = row + width, row + U[2] * width, row + U[3] * width
                    for j in range(width):
                        x = before[at + j]
                        s, t = s + A[row + j] * x, t + A[row2 + j] * x
                        u, v = u + A[row3 + j] * x, v + A[row4 + j] * x
                h[k], h[k + U[1]], h[k + U[2]], h[k + U[3]] = s, t, u, v
                row, k = row + U[4] * width, k + U[4]
            for _ in range(n % 4):
                s = b[k]
                if carries:
                    for j in range(width):
                        s = s + A[row + j] * before[at + j]
                h[k] = s
                row, k = row + width, k + U[1]
            before, at = h, p
            pa, p, q = pa + across, p + up, q + one
        for j in range(width):
            state[r, j] = before[at + j]
    restore_subnormals(mode)
