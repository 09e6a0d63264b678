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


def _recur_in_python(s, a, c, o, n, small):
    for t in range(n):
        o[t] = 0
        for j in range(len(a)):
            s[t + 1] += a[j] * s[t, j]
            o[t] += c[j] * s[t, j]


def _product_in_python(columns, x, y, n, fresh):
    for t in range(n):
        y[t] *= 0 if fresh else 1
        for j in range(len(columns)):
            y[t] += columns[j] * x[t, j]


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
def _recur_vector(typingctx, s, a, c, o, n, small):
    """``s[t + 1] += A s[t]``, ``o[t] = C s[t]`` for `n` steps; states, outputs, columns of A and C are vectors."""

    def codegen(context, builder, signature, args):
        states, *matrices, outputs = (_Lines(context, builder, signature.args[k], args[k]) for k in range(4))
        count = [ir.Constant(ir.IntType(64), j) for j in range(max(2, len(small)))]
        columns = [[m.load(j) for m in matrices] for j in count[: len(small)]]
        slot = cgutils.alloca_once_value(builder, states.load(count[0]))
        with cgutils.for_range(builder, args[4]) as loop:
            x, after = builder.load(slot), builder.add(loop.index, count[1])
            zero = ir.Constant(states.vector, [0.0] * LANES)
            new, out = states.load(after), zero
            for j, (of_a, of_c) in enumerate(columns):
                number = states.copies(x, j)
                new, out = states.add(new, of_a, number), states.add(out, of_c, number)
            states.store(new, after)
            outputs.store(out, loop.index)
            builder.store(new, slot)
        return context.get_dummy_value()

    return types.void(s, a, c, o, n, small), codegen


@intrinsic
def _product_vector(typingctx, columns, x, y, n, fresh):
    """``y[t] = M x[t]``, or added to ``y[t]`` unless `fresh`, for `n` steps; `y` and the columns of M are padded to
    vectors."""

    def codegen(context, builder, signature, args):
        m, given, result = (_Lines(context, builder, signature.args[k], args[k]) for k in range(3))
        count = builder.extract_value(context.make_array(signature.args[0])(context, builder, args[0]).shape, 0)
        slot = cgutils.alloca_once(builder, result.vector)
        with cgutils.for_range(builder, args[3]) as steps:
            zero = ir.Constant(result.vector, [0.0] * LANES)
            builder.store(builder.select(args[4], zero, result.load(steps.index)), slot)
            with cgutils.for_range(builder, count) as loop:
                term = m.load(loop.index), given.spread(steps.index, loop.index)
                builder.store(result.add(builder.load(slot), *term), slot)
            result.store(builder.load(slot), steps.index)
        return context.get_dummy_value()

    return types.void(columns, x, y, n, fresh), codegen


_disabled = getattr(numba.config, "DISABLE_JIT", False)
recur_small = _recur_in_python if _disabled else _recur_vector
product_small = _product_in_python if _disabled else _product_vector
