"""The recurrence of a small state as a compiler intrinsic: the state is one vector, in a register.

A product is one multiply-add of a column per number, in the order of the columns.
"""

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu.simd import Real, pointer


def _int(n):
    return ir.Constant(ir.IntType(64), n)


@intrinsic
def _recur_vector(typingctx, columns, u, x, y, row, states, inputs, outputs, lanes):
    """``x[t + 1] = A x[t] + B u[t]``, ``y[t] = C x[t] + D u[t]`` for one row of contiguous arrays (rows, T, numbers).

    `columns` holds those of A, B, C and D, then the first state, as vectors. The lengths of the four tuples are
    compile-time constants.
    """
    n, m, p = len(states), len(inputs), len(outputs)

    def codegen(context, builder, signature, args):
        v = Real(context, builder, x.dtype, len(lanes))
        bases = [pointer(context, builder, t, value) for t, value in zip(signature.args[:4], args[:4], strict=True)]
        length = builder.extract_value(context.make_array(x)(context, builder, args[2]).shape, 1)
        first = builder.mul(args[4], _int((2 * (n + m) + 1) * v.lanes))
        *matrices, start = (v.load(bases[0], builder.add(first, _int(k * v.lanes))) for k in range(2 * (n + m) + 1))
        a, b, c, d = (matrices[k : k + size] for k, size in ((0, n), (n, m), (n + m, n), (2 * n + m, m)))
        begin, slot = builder.mul(args[4], length), cgutils.alloca_once_value(builder, start)
        with cgutils.for_range(builder, length) as loop:
            t, state = builder.add(begin, loop.index), builder.load(slot)
            _store(v, state, bases[2], t, n)
            given = [builder.gep(bases[1], [builder.add(builder.mul(t, _int(m)), _int(j))]) for j in range(m)]
            driven = [v.splat(builder.load(place)) for place in given]
            new = result = None
            for column, value in zip(b, driven, strict=True):
                new = v.mad(column, value, new)
            for j in range(n):
                value = v.shuffle(state, state, [j] * v.lanes)
                new, result = v.mad(a[j], value, new), v.mad(c[j], value, result)
            for column, value in zip(d, driven, strict=True):
                result = v.mad(column, value, result)
            _store(v, v.zero if result is None else result, bases[3], t, p)
            builder.store(v.zero if new is None else new, slot)
        return context.get_dummy_value()

    return types.void(columns, u, x, y, row, states, inputs, outputs, lanes), codegen


def _store(v, value, base, t, count):
    """The first `count` lanes to row `t`, and nothing to what follows."""
    start = v.b.mul(t, _int(count))
    if count == v.lanes:
        v.store(value, base, start)
    else:
        for i in range(count):
            v.b.store(v.lane(value, i), v.b.gep(base, [v.b.add(start, _int(i))]), align=v.align)


def _recur_in_python(columns, u, x, y, row, states, inputs, outputs, lanes):
    n, m, p = len(states), len(inputs), len(outputs)
    a, b, c, d, first = np.split(columns[row], np.cumsum([n, m, n, m]))
    state = first[0]
    for t in range(x.shape[1]):
        x[row, t], y[row, t] = state[:n], (state[:n] @ c + u[row, t] @ d)[:p]
        state = state[:n] @ a + u[row, t] @ b


recur_small = _recur_in_python if getattr(numba.config, "DISABLE_JIT", False) else _recur_vector
