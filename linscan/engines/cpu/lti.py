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
        matrices = [v.reshape(count, *v.shape[-2:]) for v in (A, B, C, D)]
        signals = [v.reshape(count, *v.shape[-2:]) for v in (u, x0[..., None, :], y, x)]
        small = (0,) * n if n <= _VECTOR and u.dtype.kind != "c" else ()

        def body(lo: int, hi: int) -> None:
            _simulate(*matrices, *signals, small, lo, hi)

        parallel_for(body, count, grain=max(1, _GRAIN // (T * (n + m) * (n + p))), workers=workers)
    return y, x


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
def _outputs(s, c, d, u, y, start, n):
    """``y = C x + D u`` in a tile, one product after the other in the order of the columns."""
    for t in range(n):
        before, given, result = s[t], u[start + t], y[start + t]
        for i in range(c.shape[0]):
            total = y.dtype.type(0)
            for j in range(c.shape[1]):
                total += c[i, j] * before[j]
            for j in range(d.shape[1]):
                total += d[i, j] * given[j]
            result[i] = total


@jit
def _simulate(A, B, C, D, u, x0, y, x, small, lo, hi):
    mode = flush_subnormals()
    order, length = A.shape[1], u.shape[1]
    padded = _VECTOR if len(small) else order
    s = np.zeros((_TIMES + 1, padded), u.dtype)
    columns = np.zeros((order, padded), u.dtype)
    for row in range(lo, hi):
        b, c, d, us, ys, xs = B[row].copy(), C[row].copy(), D[row].copy(), u[row], y[row], x[row]
        columns[:, :order] = A[row].T
        s[0, :order] = x0[row, 0]
        for start in range(0, length, _TIMES):
            n = min(_TIMES, length - start)
            for t in range(n):
                given, line = us[start + t], s[t + 1]
                for i in range(order):
                    total = u.dtype.type(0)
                    for j in range(b.shape[1]):
                        total += b[i, j] * given[j]
                    line[i] = total
            if len(small):
                _recur_small(s, columns, n, small)
            else:
                _recur_large(s, columns, n)
            _outputs(s, c, d, us, ys, start, n)
            for t in range(n):
                line, state = xs[start + t], s[t]
                for i in range(order):
                    line[i] = state[i]
            s[0] = s[n]
    restore_subnormals(mode)
