"""Vectors of one step of the selective scan, real or complex, as LLVM instructions."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from linscan.engines.cpu.selective_math import Functions
from linscan.engines.cpu.simd import Real, pointer, vectors

STEPS = 4  # taken at once where nothing keeps them apart: a step alone begins and ends more often than it computes
_BYTES = 64  # of the real numbers in a vector: half as wide, one exponential's chain would fill the processor's queues


def lanes_of(dtype: np.dtype) -> int:
    """Channels in a vector of this real or complex dtype."""
    return _BYTES // np.zeros(0, dtype).real.itemsize


def real_vectors(context: Any, builder: Any, real: Any) -> Real:
    """The vector arithmetic of a real Numba type."""
    return Real(context, builder, real, _BYTES * 8 // real.bitwidth)


def pointers(context: Any, builder: Any, signature: Any, args: Any, count: int) -> list[Any]:
    """The addresses of the first `count` arguments."""
    return [pointer(context, builder, t, x) for t, x in zip(signature.args[:count], args[:count], strict=True)]


class Step:
    """The arithmetic of one step, for states of the Numba type `element`; `constants` is the address of theirs."""

    def __init__(self, context: Any, builder: Any, element: Any, constants: Any) -> None:
        real = getattr(element, "underlying_float", element)
        self.b, self.real = builder, real_vectors(context, builder, real)
        self.v = vectors(context, builder, element, self.real.lanes)
        self.is_complex = real is not element
        self.f = Functions(self.real, constants)
        self.f.load_power()
        if self.is_complex:
            self.f.load_turn()

    def decay(self, delta: Any, A: Any) -> Any:
        """``exp(Δ A)``, the real part of A multiplied by log2(e)."""
        if not self.is_complex:
            return self.f.power(self.real.mul(delta, A))
        size = self.f.power(self.real.mul(delta, A[0]))
        return tuple(self.real.mul(size, x) for x in self.f.turn(self.real.mul(delta, A[1])))

    def parts(self, x: Any) -> tuple[Any, ...]:
        return x if self.is_complex else (x,)

    def whole(self, parts: Any) -> Any:
        return tuple(parts) if self.is_complex else next(iter(parts))

    def scaled(self, delta: Any, x: Any) -> Any:
        """A vector times real numbers."""
        return self.whole(self.real.mul(delta, part) for part in self.parts(x))

    def inner(self, x: Any, y: Any) -> Any:
        """``Re(conj(x) y)``."""
        first, *second = (self.real.mul(a, b) for a, b in zip(self.parts(x), self.parts(y), strict=True))
        return self.real.add(first, second[0]) if second else first

    def unless(self, condition: Any, x: Any) -> Any:
        """Zero where the condition holds."""
        return self.whole(self.b.select(condition, self.real.zero, part) for part in self.parts(x))

    def place(self) -> list[Any]:
        """Where a sum of vectors is kept; zero at first."""
        return [cgutils.alloca_once_value(self.b, self.real.zero) for _ in range(1 + self.is_complex)]

    def read(self, place: list[Any]) -> Any:
        return self.whole(self.b.load(slot) for slot in place)

    def write(self, value: Any, place: list[Any]) -> None:
        for part, slot in zip(self.parts(value), place, strict=True):
            self.b.store(part, slot)

    def total(self, x: Any) -> Any:
        """The sum over the lanes of real numbers, by halves: always in the same order."""
        lanes = self.real.lanes
        while lanes > 1:
            lanes //= 2
            low, high = (self.real.shuffle(x, x, list(range(k, k + lanes))) for k in (0, lanes))
            x = self.b.fadd(low, high)
        return self.b.extract_element(x, ir.Constant(ir.IntType(32), 0))

    def add_to(self, base: Any, index: Any, x: Any) -> None:
        """Add the sum over the lanes of `x` to one number."""
        at = self.b.gep(base, [index])
        if self.is_complex:
            old = self.v.context.make_complex(self.b, self.v.type, self.b.load(at))
            old.real, old.imag = (self.b.fadd(y, self.total(z)) for y, z in zip((old.real, old.imag), x, strict=True))
            self.b.store(old._getvalue(), at)
        else:
            self.b.store(self.b.fadd(self.b.load(at), self.total(x)), at)
