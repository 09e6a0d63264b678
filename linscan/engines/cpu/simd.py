"""Vectors of numbers (LANES, unless told) as LLVM instructions, real or complex behind one set of names."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

LANES = 8
_CONTRACT = ("contract",)


class Real:
    """`lanes` real numbers; scalars and vectors are single LLVM values, and so is a vector of one lane."""

    def __init__(self, context: Any, builder: Any, element: Any, lanes: int = LANES) -> None:
        self.context, self.b, self.type, self.lanes = context, builder, element, lanes
        self.align = element.bitwidth // 8
        scalar = context.get_value_type(element)
        self.vector = scalar if lanes == 1 else ir.VectorType(scalar, lanes)
        self.zero = ir.Constant(self.vector, 0.0 if lanes == 1 else [0.0] * lanes)

    def load(self, base: Any, index: Any) -> Any:
        return self.b.load(self._at(base, index), align=self.align)

    def store(self, value: Any, base: Any, index: Any) -> None:
        self.b.store(value, self._at(base, index), align=self.align)

    def _at(self, base: Any, index: Any) -> Any:
        return self.b.bitcast(self.b.gep(base, [index]), self.vector.as_pointer())

    def mul(self, x: Any, y: Any) -> Any:
        return self.b.fmul(x, y, flags=_CONTRACT)

    def add(self, x: Any, y: Any) -> Any:
        return self.b.fadd(x, y, flags=_CONTRACT)

    def mad(self, x: Any, y: Any, z: Any) -> Any:
        """``x y + z``; `z` is None for zero."""
        return self.mul(x, y) if z is None else self.add(self.mul(x, y), z)

    def conj(self, x: Any) -> Any:
        return x

    def shuffle(self, x: Any, y: Any, lanes: list[int]) -> Any:
        return self.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))

    def pick(self, x: Any, lanes: list[int | None], fill: float) -> Any:
        """Lane i of the result is lane ``lanes[i]`` of `x`, or `fill` where that is None."""
        return self.shuffle(
            x, ir.Constant(self.vector, [fill] * self.lanes), [self.lanes if i is None else i for i in lanes]
        )

    def lane(self, x: Any, i: int) -> Any:
        """One lane, as a scalar of Numba's."""
        return self.b.extract_element(x, ir.Constant(ir.IntType(32), i))

    def splat(self, scalar: Any) -> Any:
        one = self.b.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(one, one, [0] * self.lanes)

    def vanishing(self, x: Any, y: Any) -> Any:
        """Zero in the lanes where `x` and `y` are neither inf nor NaN, NaN in the others."""
        return self.add(self.mul(x, self.zero), self.mul(y, self.zero))

    def all_zero(self, x: Any) -> Any:
        bits = self.b.bitcast(self.b.fcmp_ordered("oeq", x, self.zero), ir.IntType(self.lanes))
        return self.b.icmp_unsigned("==", bits, ir.Constant(ir.IntType(self.lanes), 2**self.lanes - 1))

    def all_finite(self, x: Any, y: Any) -> Any:
        return self.all_zero(self.vanishing(x, y))


class Complex:
    """`lanes` complex numbers, interleaved in memory; a vector is the pair (real parts, imaginary parts)."""

    def __init__(self, context: Any, builder: Any, element: Any, lanes: int = LANES) -> None:
        self.context, self.b, self.type, self.lanes = context, builder, element, lanes
        self.r = Real(context, builder, element.underlying_float, lanes)

    def _flat(self, base: Any, index: Any) -> tuple[Any, Any, Any]:
        base = self.b.bitcast(base, self.r.vector.element.as_pointer())
        index = self.b.add(index, index)
        return base, index, self.b.add(index, ir.Constant(index.type, self.lanes))

    def load(self, base: Any, index: Any) -> Any:
        base, low, high = self._flat(base, index)
        first, second = self.r.load(base, low), self.r.load(base, high)
        return tuple(self.r.shuffle(first, second, list(range(k, 2 * self.lanes, 2))) for k in (0, 1))

    def store(self, value: Any, base: Any, index: Any) -> None:
        base, low, high = self._flat(base, index)
        lanes = [i // 2 + self.lanes * (i % 2) for i in range(2 * self.lanes)]
        self.r.store(self.r.shuffle(value[0], value[1], lanes[: self.lanes]), base, low)
        self.r.store(self.r.shuffle(value[0], value[1], lanes[self.lanes :]), base, high)

    def mul(self, x: Any, y: Any) -> Any:
        r, minus = self.r, self.b.fneg(x[1])
        return r.mad(minus, y[1], r.mul(x[0], y[0])), r.mad(x[1], y[0], r.mul(x[0], y[1]))

    def add(self, x: Any, y: Any) -> Any:
        return self.r.add(x[0], y[0]), self.r.add(x[1], y[1])

    def mad(self, x: Any, y: Any, z: Any) -> Any:
        r, minus = self.r, self.b.fneg(x[1])
        return r.mad(minus, y[1], r.mad(x[0], y[0], z[0])), r.mad(x[1], y[0], r.mad(x[0], y[1], z[1]))

    def conj(self, x: Any) -> Any:
        return x[0], self.b.fneg(x[1])

    def pick(self, x: Any, lanes: list[int | None], fill: float) -> Any:
        return self.r.pick(x[0], lanes, fill), self.r.pick(x[1], lanes, 0.0)

    def lane(self, x: Any, i: int) -> Any:
        number = self.context.make_complex(self.b, self.type)
        number.real, number.imag = self.r.lane(x[0], i), self.r.lane(x[1], i)
        return number._getvalue()

    def splat(self, scalar: Any) -> Any:
        number = self.context.make_complex(self.b, self.type, scalar)
        return self.r.splat(number.real), self.r.splat(number.imag)

    def all_finite(self, x: Any, y: Any) -> Any:
        return self.r.all_zero(self.r.add(self.r.vanishing(x[0], y[0]), self.r.vanishing(x[1], y[1])))


def vectors(context: Any, builder: Any, element: Any, lanes: int = LANES) -> Any:
    """The vector arithmetic of a Numba number type."""
    return (Complex if isinstance(element, types.Complex) else Real)(context, builder, element, lanes)


def pointer(context: Any, builder: Any, array_type: Any, value: Any) -> Any:
    """The address of an array's first element."""
    return context.make_array(array_type)(context, builder, value).data


def prefetch(v: Any, base: Any, index: Any, distance: int, write: bool = False) -> None:
    """Ask for the cache line `distance` bytes on: a long dependency chain keeps the processor from seeing that far."""
    i8, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [i8, i32, i32, i32])
    function = cgutils.get_or_insert_function(v.b.module, kind, "llvm.prefetch.p0")
    there = v.b.gep(v.b.bitcast(v.b.gep(base, [index]), i8), [ir.Constant(ir.IntType(64), distance)])
    v.b.call(function, [there, ir.Constant(i32, int(write)), ir.Constant(i32, 3), ir.Constant(i32, 1)])
