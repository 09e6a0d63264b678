"""State-space simulation on the CPU, row by row in tiles of time.

Only the product with A has to wait for the step before. A small real state lives in one vector, so that a step is one
multiply-add of a whole column of A per state; what has no memory, the products with B, C and D, is done a tile at a
time.
"""

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan._arrays import Array
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for

_GRAIN = 1 << 16  # multiply-adds a thread must get for its hand-over (about 30 us) to pay
_TIMES = 128  # steps of a tile
_VECTOR = 8  # states that fit into one vector


def dlsim(A: Array, B: Array, C: Array, D: Array, u: Array, x0: Array, *, workers) -> tuple[Array, Array]:
    """See `linscan.ops.lti.dlsim`: outputs and states of every row; all arguments have the same leading axes."""
    rows, (T, m), (p, n) = u.shape[:-2], u.shape[-2:], C.shape[-2:]
    y, x = np.empty((*rows, T, p), u.dtype), np.empty((*rows, T, n), u.dtype)
    if T and y.size + x.size:
        count = int(np.prod(rows, dtype=np.intp))
        inputs = [_contiguous(v.reshape(count, *v.shape[-2:])) for v in (A, B, C, D, u, x0[..., None, :])]
        results = [v.reshape(count, *v.shape[-2:]) for v in (y, x)]
        small = (0,) * n if n <= _VECTOR and u.dtype.kind != "c" else ()
        padded = _VECTOR if small else n

        def body(lo: int, hi: int) -> None:
            scratch = np.zeros((_TIMES + 1, padded), u.dtype), np.zeros((n, padded), u.dtype)
            _simulate(*inputs, *results, scratch, small, lo, hi)

        parallel_for(body, count, grain=max(1, _GRAIN // (T * (n + m) * (n + p))), workers=workers)
    return y, x


def _contiguous(v: Array) -> Array:
    """`v`, C-contiguous and read-only: one kernel serves all layouts, for a copy that is small beside the results."""
    return np.broadcast_to(np.ascontiguousarray(v), v.shape)


def _recur_in_python(s, columns, n, small):
    for t in range(n):
        for j in range(len(columns)):
            s[t + 1] += columns[j] * s[t, j]


@intrinsic
def _recur_vector(typingctx, s, columns, n, small):
    """``s[t + 1] += A s[t]`` for `n` steps; `s` and the columns of A are padded to vectors."""
    width = ir.IntType(32)

    def codegen(context, builder, signature, args):
        scalar, align = context.get_value_type(s.dtype), s.dtype.bitwidth // 8
        vector = ir.VectorType(scalar, _VECTOR)

        def line(k, index):
            data = context.make_array(signature.args[k])(context, builder, args[k]).data
            return builder.gep(builder.bitcast(data, vector.as_pointer()), [index])

        a = [builder.load(line(1, ir.Constant(ir.IntType(64), j)), align=align) for j in range(len(small))]
        slot = cgutils.alloca_once_value(builder, builder.load(line(0, ir.Constant(ir.IntType(64), 0)), align=align))
        with cgutils.for_range(builder, args[2]) as loop:
            x = builder.load(slot)
            after = line(0, builder.add(loop.index, ir.Constant(ir.IntType(64), 1)))
            new = builder.load(after, align=align)
            for j, column in enumerate(a):
                spread = builder.shuffle_vector(x, x, ir.Constant(ir.VectorType(width, _VECTOR), [j] * _VECTOR))
                new = builder.fadd(new, builder.fmul(column, spread, flags=("contract",)), flags=("contract",))
            builder.store(new, after, align=align)
            builder.store(new, slot)
        return context.get_dummy_value()

    return types.void(s, columns, n, small), codegen


_recur_small = _recur_in_python if getattr(numba.config, "DISABLE_JIT", False) else _recur_vector


@jit
def _recur_large(s, columns, n):
    for t in range(n):
        before, after = s[t], s[t + 1]
        for j in range(len(columns)):
            column, x = columns[j], before[j]
            for i in range(len(column)):
                after[i] += column[i] * x


@jit
def _multiply(matrix, x, x_start, y, y_start, n, fresh):
    """``y = matrix x``, or added to `y` unless `fresh`, for `n` samples; sums in the order of the columns."""
    zero = y.dtype.type(0)
    for t in range(n):
        given, result = x[x_start + t], y[y_start + t]
        for i in range(matrix.shape[0]):
            row, total = matrix[i], result[i]
            if fresh:
                total = zero
            for j in range(matrix.shape[1]):
                total += row[j] * given[j]
            result[i] = total


@jit
def _simulate(A, B, C, D, u, x0, y, x, scratch, small, lo, hi):
    """The rows in ``range(lo, hi)``; `scratch`, this thread's, is the states of a tile (and one), and A's columns."""
    mode = flush_subnormals()
    s, columns = scratch
    order, times = A.shape[1], s.shape[0] - 1
    for row in range(lo, hi):
        for j in range(order):
            s[0, j] = x0[row, 0, j]
            for i in range(order):
                columns[j, i] = A[row, i, j]
        for start in range(0, u.shape[1], times):
            n = min(times, u.shape[1] - start)
            _multiply(B[row], u[row], start, s, 1, n, True)
            if len(small):
                _recur_small(s, columns, n, small)
            else:
                _recur_large(s, columns, n)
            _multiply(C[row], s, 0, y[row], start, n, True)
            _multiply(D[row], u[row], start, y[row], start, n, False)
            for t in range(n):
                for i in range(order):
                    x[row, start + t, i] = s[t, i]
            for i in range(order):
                s[0, i] = s[n, i]
    restore_subnormals(mode)
