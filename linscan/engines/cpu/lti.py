"""State-space simulation on the CPU, row by row in tiles of time.

Only the product with A has to wait for the step before. The states of a small real system live in one vector: a step is
one multiply-add of a whole column per state and input, and B, C and D are applied while A waits. Larger and complex
systems take each product a tile at a time.
"""

import math

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.lti_simd import recur_small
from linscan.engines.cpu.pool import parallel_for

_GRAIN = 1 << 16  # multiply-adds a thread must get for its hand-over (about 30 us) to pay
_TIMES = 128  # steps of a tile
_SMALL = 8  # numbers that fit a vector


def dlsim(A: Array, B: Array, C: Array, D: Array, u: Array, x0: Array, *, workers) -> tuple[Array, Array]:
    """See `linscan.ops.lti.dlsim`: outputs and states of every row; all arguments have the same leading axes."""
    rows, (T, m), (p, n) = u.shape[:-2], u.shape[-2:], C.shape[-2:]
    y, x = np.empty((*rows, T, p), u.dtype), np.empty((*rows, T, n), u.dtype)
    if T and y.size + x.size:
        count = math.prod(rows)
        inputs = [v.reshape(count, *v.shape[-2:]) for v in (A, B, C, D, x0[..., None], u)]
        results = [v.reshape(count, *v.shape[-2:]) for v in (y, x)]
        body = (_small if max(n, m, p) <= _SMALL and u.dtype.kind != "c" else _large)(*inputs, *results)
        parallel_for(body, count, grain=max(1, _GRAIN // (T * (n + m) * (n + p))), workers=workers)
    return y, x


def _small(A, B, C, D, x0, u, y, x):
    """What runs a range of rows."""
    (p, n), m = C.shape[1:], u.shape[2]
    lanes = 4 if max(n, p) <= 4 else _SMALL
    columns, k = np.zeros((len(u), 2 * (n + m) + 1, lanes), u.dtype), 0
    for matrix in (A, B, C, D, x0):
        height, width = matrix.shape[1:]
        columns[:, k : k + width, :height] = matrix.swapaxes(1, 2)
        k += width
    sizes = tuple((0,) * size for size in (n, m, p, lanes))
    given = _contiguous(u)
    return lambda lo, hi: _simulate_small(columns, given, x, y, *sizes, lo, hi)


def _large(A, B, C, D, x0, u, y, x):
    """What runs a range of rows."""
    (p, n), m = C.shape[1:], u.shape[2]
    inputs = [_contiguous(v) for v in (A, B, C, D, u, x0.swapaxes(1, 2))]
    shapes = (_TIMES + 1, n), (_TIMES, p), (n, n), (m, n), (n, p), (m, p)

    def body(lo: int, hi: int) -> None:
        _simulate(*inputs, y, x, tuple(np.zeros(shape, u.dtype) for shape in shapes), lo, hi)

    return body


def _contiguous(v: Array) -> Array:
    """`v`, C-contiguous and read-only: one kernel serves all layouts, for a copy that is small beside the results."""
    return np.broadcast_to(np.ascontiguousarray(v), v.shape)


@jit
def _simulate_small(columns, u, x, y, states, inputs, outputs, lanes, lo, hi):
    """The rows in ``range(lo, hi)`` of a system whose vectors fit a register."""
    mode = flush_subnormals()
    for row in range(lo, hi):
        recur_small(columns, u, x, y, row, states, inputs, outputs, lanes)
    restore_subnormals(mode)


@jit
def _recur_large(s, columns, n):
    for t in range(n):
        before, after = s[t], s[t + 1]
        for j in range(len(columns)):
            column, x = columns[j], before[j]
            for i in range(len(column)):
                after[i] += column[i] * x


@jit
def _product(columns, x, y, n, fresh):
    for t in range(n):
        result, given = y[t], x[t]
        for i in range(columns.shape[1]):
            result[i] = 0 if fresh else result[i]
        for j in range(len(columns)):
            column, number = columns[j], given[j]
            for i in range(len(column)):
                result[i] += column[i] * number


@jit
def _transposed(matrix, columns):
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            columns[j, i] = matrix[i, j]


@jit
def _simulate(A, B, C, D, u, x0, y, x, scratch, lo, hi):
    """The rows in ``range(lo, hi)``; `scratch` is this thread's: states and outputs of a tile, columns of matrices."""
    mode = flush_subnormals()
    s, o, a, b, c, d = scratch
    order, outputs, times = A.shape[1], C.shape[1], o.shape[0]
    for row in range(lo, hi):
        _transposed(A[row], a)
        _transposed(B[row], b)
        _transposed(C[row], c)
        _transposed(D[row], d)
        for i in range(order):
            s[0, i] = x0[row, 0, i]
        for start in range(0, u.shape[1], times):
            n = min(times, u.shape[1] - start)
            given, states, results = u[row, start:], x[row, start:], y[row, start:]
            _product(b, given, s[1:], n, True)
            _recur_large(s, a, n)
            _product(c, s, o, n, True)
            _product(d, given, o, n, False)
            for t in range(n):
                for i in range(order):
                    states[t, i] = s[t, i]
            for t in range(n):
                for i in range(outputs):
                    results[t, i] = o[t, i]
            for i in range(order):
                s[0, i] = s[n, i]
    restore_subnormals(mode)
