"""Exponential, sine and cosine, softplus and sigmoid of vectors, as LLVM instructions: Numba has them for numbers only.

``exp(x) = 2^k exp(r)`` with k the integer nearest to x / log 2, so that |r| <= log(2) / 2, and exp(r) a polynomial; the
relative error is below 2 eps. 2^k is made in the exponent's bits; below the smallest normal number it is zero, above
half the largest number inf. Sine and cosine likewise, with k the nearest multiple of pi, whose parity is the sign.
"""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from linscan.engines.cpu.simd import Real

# Of degree 6, through exp at the Chebyshev points of |r| <= log(2) / 2: within 2e-9 there, a term less than Taylor's.
_NEAR = np.polynomial.Chebyshev.interpolate(np.exp, 6, [-math.log(2) / 2, math.log(2) / 2])
_EXP = [float(x) for x in _NEAR.convert(kind=np.polynomial.Polynomial).coef]
_LOG2 = Fraction(
    "0.693147180559945309417232121458176568"
)  # more than a float64 holds: the multiples are in the hundreds
_PI = Fraction("3.14159265358979323846264338327950288")
_BITS = {4: (23, 127), 8: (52, 1023)}  # of the mantissa, and the exponent's bias
_TERMS = {4: (7, 8, 7), 8: (14, 17, 12)}  # of the series of exp, log1p, and sine and cosine


def constants(real: np.dtype) -> np.ndarray:
    """What `Functions` loads: numbers written into the code would be loaded anew in every turn of a loop."""
    (mantissa, bias), (exp, log, turn) = _BITS[real.itemsize], _TERMS[real.itemsize]
    round_off = (
        1.5 * 2.0**mantissa
    )  # added and subtracted, it leaves the nearest integer; before, that in the last bits
    numbers = [-bias * math.log(2), 1 / math.log(2), round_off + bias, math.log(2), *_split(_LOG2, mantissa)]
    numbers += [1 / math.factorial(j) for j in range(exp)] if exp > 7 else _EXP
    numbers += [1 / math.pi, round_off, *_split(_PI, mantissa)]
    numbers += [(-1) ** j / math.factorial(2 * j) for j in range(turn)]
    numbers += [(-1) ** j / math.factorial(2 * j + 1) for j in range(turn)]
    numbers += [2 / (2 * j + 1) for j in range(log)]
    return np.array(numbers, real)


def _split(x: Fraction, mantissa: int) -> tuple[float, float]:
    """`x` in two pieces, the first so short that products of it with integers below 2^10 are exact."""
    scale = 2 ** (mantissa - 14)
    high = Fraction(math.floor(x * scale), scale)
    return float(high), float(x - high)


class Functions:
    """Functions of vectors of the real numbers `r`; `base` is the address of their `constants`."""

    def __init__(self, r: Real, base: Any) -> None:
        self.r, self.b, self.base = r, r.b, base
        size = r.type.bitwidth // 8
        (self.mantissa, bias), (exp, log, turn) = _BITS[size], _TERMS[size]
        # The bits of the float 1.5 * 2^mantissa + 2 bias + 1: the count of 2^(bias + 1), infinity.
        self.top = ((bias + self.mantissa) << self.mantissa) + (1 << (self.mantissa - 1)) + 2 * bias + 1
        self.integers = ir.VectorType(ir.IntType(r.type.bitwidth), r.lanes)
        edges = [0, 6, 6 + exp, 10 + exp, 10 + exp + turn, 10 + exp + 2 * turn, 10 + exp + 2 * turn + log]
        self.places = [list(range(lo, hi)) for lo, hi in pairwise(edges)]

    def _take(self, part: int) -> list[Any]:
        """A part of the constants, each in all lanes, loaded where the builder stands."""
        at = [self.b.gep(self.base, [ir.Constant(ir.IntType(64), i)]) for i in self.places[part]]
        return [self.r.splat(self.b.load(address)) for address in at]

    def load_exp(self) -> None:
        """Load what `exp` needs; before a loop, so that it stays in registers."""
        self.reduction, self.series = self._take(0), self._take(1)

    def load_turn(self) -> None:
        """Load what `turn` needs."""
        self.half_turn, self.cosine, self.sine = self._take(2), self._take(3), self._take(4)

    def load_log(self) -> None:
        """Load what `softplus` needs beside `exp`."""
        self.atanh = self._take(5)

    def least(self, x: Any, top: Any) -> Any:
        """The smaller one; NaN where `x` is NaN."""
        return self.b.select(self.b.fcmp_ordered("olt", top, x), top, x)

    def most(self, x: Any, bottom: Any) -> Any:
        """The larger one; NaN where `x` is NaN."""
        return self.b.select(self.b.fcmp_ordered("ogt", bottom, x), bottom, x)

    def horner(self, series: list[Any], x: Any) -> Any:
        total = series[-1]
        for term in reversed(series[:-1]):
            total = self.r.mad(total, x, term)
        return total

    def _shifted(self, x: Any, bits: int) -> Any:
        return self.b.shl(self.b.bitcast(x, self.integers), ir.Constant(self.integers, [bits] * self.r.lanes))

    def _nearest(self, x: Any, inverse: Any, round_off: Any, *pieces: Any) -> tuple[Any, Any]:
        """The nearest multiple of the sum of `pieces`, in the last bits of a float, and what remains of `x`.

        One piece does for products: its error is a hundredth of what rounding them has cost.
        """
        count = self.r.mad(x, inverse, round_off)
        whole = self.b.fneg(self.b.fsub(count, round_off))
        for piece in pieces:
            x = self.r.mad(whole, piece, x)
        return count, x

    def exp(self, x: Any, exact: bool = False) -> Any:
        """Beyond 2^22 something that is not finite."""
        bottom, inverse, round_off, log2, high, low = self.reduction
        x = self.most(x, bottom)
        pieces = (high, low) if exact else (log2,)
        count, left = self._nearest(x, inverse, round_off, *pieces)
        # 2^128 is inf; a larger k would reach the sign. As integers, floats of one sign keep their order, and the
        # comparison runs beside the multiplications. NaN stays in `left`.
        bits, top = self.b.bitcast(count, self.integers), ir.Constant(self.integers, [self.top] * self.r.lanes)
        bits = self.b.select(self.b.icmp_signed("<", bits, top), bits, top)
        power = self.b.shl(bits, ir.Constant(self.integers, [self.mantissa] * self.r.lanes))
        return self.r.mul(self.horner(self.series, left), self.b.bitcast(power, self.r.vector))

    def turn(self, x: Any) -> tuple[Any, Any]:
        """Cosine and sine; for angles beyond all precision still something of modulus near one, or NaN."""
        count, left = self._nearest(x, *self.half_turn)
        edge = ir.Constant(self.r.vector, [1.6] * self.r.lanes)
        left = self.most(self.least(left, edge), self.b.fneg(edge))
        square, sign = self.r.mul(left, left), self._shifted(count, self.r.type.bitwidth - 1)
        parts = self.horner(self.cosine, square), self.r.mul(left, self.horner(self.sine, square))
        flipped = [self.b.xor(self.b.bitcast(x, self.integers), sign) for x in parts]
        return self.b.bitcast(flipped[0], self.r.vector), self.b.bitcast(flipped[1], self.r.vector)

    def sigmoid(self, x: Any) -> tuple[Any, Any, Any]:
        """``1 / (1 + exp(-x))``, the same of -x, and ``exp(-|x|)``, of which both are made."""
        one, positive = ir.Constant(self.r.vector, [1.0] * self.r.lanes), self.b.fcmp_unordered("uge", x, self.r.zero)
        small = self.exp(self.b.select(positive, self.b.fneg(x), x), exact=True)
        share = self.b.fdiv(one, self.b.fadd(one, small))
        rest = self.b.fmul(small, share)
        return self.b.select(positive, share, rest), self.b.select(positive, rest, share), small

    def softplus(self, x: Any, small: Any) -> Any:
        """``max(x, 0) + log1p(exp(-|x|))``, the logarithm from the series of ``2 atanh(e / (2 + e))``."""
        two = ir.Constant(self.r.vector, [2.0] * self.r.lanes)
        ratio = self.b.fdiv(small, self.b.fadd(two, small))
        log = self.r.mul(ratio, self.horner(self.atanh, self.r.mul(ratio, ratio)))
        return self.r.add(self.most(x, self.r.zero), log)


def for_vectors(builder: Any, count: Any, lanes: int) -> Any:
    """A loop over ``range(0, count, lanes)``."""
    zero, step = ir.Constant(count.type, 0), ir.Constant(count.type, lanes)
    return cgutils.for_range_slice(builder, zero, count, step)
