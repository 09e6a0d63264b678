"""Products of a small matrix with vectors, and the recurrence of a small state, as compiler intrinsics.

A vector lives in one register; a product is one multiply-add of a column per number. Both keep the order of the
columns.
"""

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8  # numbers in a vector


def _recur_in_python(matrices, u, s, o, n, states, inputs):
    a, b, c, d = matrices
    for t in range(n):
        s[t + 1] = o[t] = 0
        for j in range(len(inputs)):
            s[t + 1] += b[j] * u[t, j]
        for j in range(len(states)):
            s[t + 1] += a[j] * s[t, j]
            o[t] += c[j] * s[t, j]
        for j in range(len(inputs)):
            o[t] += d[j] * u[t, j]


class _Lines:
    """Rows of an array as vectors, and sums of scaled vectors, as LLVM instructions."""

    def __init__(self, context: Any, builder: Any, array_type: Any, value: Any) -> None:
        self.b, array = builder, context.make_array(array_type)(context, builder, value)
        self.data, self.width = array.data, builder.extract_value(array.shape, 1)
        self.align = array_type.dtype.bitwidth // 8
        self.vector = ir.VectorType(context.get_value_type(array_type.dtype), LANES)

    def at(self, row: Any) -> Any:
        start = self.b.gep(self.data, [self.b.mul(row, self.width)])
        return self.b.bitcast(start, self.vector.as_pointer())

    def load(self, row: Any) -> Any:
        return self.b.load(self.at(row), align=self.align)

    def store(self, value: Any, row: Any) -> None:
        self.b.store(value, self.at(row), align=self.align)

    def spread(self, row: Any, column: Any) -> Any:
        """One number in all lanes."""
        number = self.b.load(self.b.gep(self.data, [self.b.add(self.b.mul(row, self.width), column)]))
        one = self.b.insert_element(ir.Constant(self.vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        return self.copies(one, 0)

    def copies(self, value: Any, lane: int) -> Any:
        return self.b.shuffle_vector(value, value, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [lane] * LANES))

    def add(self, total: Any, column: Any, x: Any) -> Any:
        return self.b.fadd(total, self.b.fmul(column, x, flags=("contract",)), flags=("contract",))


@intrinsic
def _recur_vector(typingctx, matrices, u, s, o, n, states, inputs):
    """``s[t + 1] = A s[t] + B u[t]``, ``o[t] = C s[t] + D u[t]`` for `n` steps of one row.

    `matrices` are the columns of A, B, C and D as vectors, like the rows of `s` and `o`; the lengths of the two tuples
    are compile-time constants.
    """

    def codegen(context, builder, signature, args):
        if not len(states):  # compiled, but never reached, where the system is large or complex
            return context.get_dummy_value()
        number = [ir.Constant(ir.IntType(64), j) for j in range(max(2, len(states), len(inputs)))]
        given, state, out = (_Lines(context, builder, signature.args[k], args[k]) for k in (1, 2, 3))
        parts = [builder.extract_value(args[0], k) for k in range(4)]
        lines = [_Lines(context, builder, t, v) for t, v in zip(signature.args[0], parts, strict=True)]
        a, b, c, d = (
            [m.load(j) for j in number[: len(side)]] for m, side in zip(lines, (states, inputs) * 2, strict=True)
        )
        slot = cgutils.alloca_once_value(builder, state.load(number[0]))
        with cgutils.for_range(builder, args[4]) as loop:
            x = builder.load(slot)
            new = result = ir.Constant(state.vector, [0.0] * LANES)
            driven = [given.spread(loop.index, j) for j in number[: len(inputs)]]
            for column, value in zip(b, driven, strict=True):
                new = state.add(new, column, value)
            for j in range(len(states)):
                value = state.copies(x, j)
                new, result = state.add(new, a[j], value), state.add(result, c[j], value)
            for column, value in zip(d, driven, strict=True):
                result = state.add(result, column, value)
            out.store(result, loop.index)
            state.store(new, builder.add(loop.index, number[1]))
            builder.store(new, slot)
        return context.get_dummy_value()

    return types.void(matrices, u, s, o, n, states, inputs), codegen


recur_small = _recur_in_python if getattr(numba.config, "DISABLE_JIT", False) else _recur_vector
