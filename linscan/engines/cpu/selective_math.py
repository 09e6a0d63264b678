"""Powers of two, sine and cosine, softplus and sigmoid of vectors, as LLVM instructions: Numba has them for numbers.

``2^x = 2^k 2^r`` with k the integer nearest to x, so that |r| <= 1 / 2, and 2^r a polynomial; the relative error is
below 2 eps, and 2^0 is 1. 2^k is made in the exponent's bits; below the smallest normal number it is zero, above half
the largest number inf. Sine and cosine likewise, with k the nearest multiple of pi, whose parity is the sign.
"""

import math
from fractions import Fraction
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from llvmlite import ir

from linscan.engines.cpu.simd import Real

# 2^r for |r| <= 1 / 2, by itemsize: the best polynomial of degree 5 that is 1 at zero, within 0.8 eps; and the one of
# degree 11 through Chebyshev points and that, within 0.1 eps.
_POWERS = {
    4: [1, 0.693147004, 0.240222424, 0.0555073358, 0.00967151299, 0.00132647273],
    8: [1, 0.6931471805599453, 0.24022650695910097, 0.0555041086648216, 0.009618129107606888, 0.0013333558146416936]
    + [0.0001540353044173605, 1.525273382983612e-05, 1.321544258792169e-06, 1.0178062445845774e-07]
    + [7.072585949269223e-09, 4.454960598186495e-10],
}
_LOG2 = Fraction("0.693147180559945309417232121458176568")  # more than a float64 holds
_PI = Fraction("3.14159265358979323846264338327950288")  # the multiples are in the hundreds
_BITS = {4: (23, 127), 8: (52, 1023)}  # of the mantissa, and the exponent's bias
_TERMS = {4: (8, 7), 8: (17, 12)}  # of the series of log1p, and of sine and cosine


@cache
def constants(real: np.dtype) -> np.ndarray:
    """What `Functions` loads: numbers written into the code would be loaded anew in every turn of a loop."""
    (mantissa, bias), (log, turn) = _BITS[real.itemsize], _TERMS[real.itemsize]
    # Added and subtracted, it leaves the nearest integer; before, that in the last bits.
    round_off = 1.5 * 2.0**mantissa
    numbers = [-bias, round_off + bias, *_POWERS[real.itemsize]]
    numbers += [-bias * math.log(2), 1 / math.log(2), round_off + bias, *_split(_LOG2, mantissa)]
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
        (self.mantissa, bias), (log, turn) = _BITS[size], _TERMS[size]
        # The bits of the float 1.5 * 2^mantissa + 2 bias + 1: the count of 2^(bias + 1), infinity.
        self.top = ((bias + self.mantissa) << self.mantissa) + (1 << (self.mantissa - 1)) + 2 * bias + 1
        self.integers = ir.VectorType(ir.IntType(r.type.bitwidth), r.lanes)
        edges = accumulate([0, 2, len(_POWERS[size]), 5, 4, turn, turn, log])
        self.places = [list(range(lo, hi)) for lo, hi in pairwise(edges)]

    def _take(self, part: int) -> list[Any]:
        """A part of the constants, each in all lanes, loaded where the builder stands."""
        at = [self.b.gep(self.base, [ir.Constant(ir.IntType(64), i)]) for i in self.places[part]]
        return [self.r.splat(self.b.load(address)) for address in at]

    def load_power(self) -> None:
        """Load what `power` needs; before a loop, so that it stays in registers."""
        self.reduction, self.series = self._take(0), self._take(1)

    def load_turn(self) -> None:
        """Load what `turn` needs."""
        self.half_turn, self.cosine, self.sine = self._take(3), self._take(4), self._take(5)

    def load_log(self) -> None:
        """Load what `sigmoid` and `softplus` need beside `power`."""
        self.natural, self.atanh = self._take(2), self._take(6)

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
        """The nearest multiple of the sum of `pieces`, in the last bits of a float, and what remains of `x`."""
        count = self.r.mad(x, inverse, round_off)
        whole = self.b.fneg(self.b.fsub(count, round_off))
        for piece in pieces:
            x = self.r.mad(whole, piece, x)
        return count, x

    def power(self, x: Any) -> Any:
        """``2^x``; for x beyond 2^22 something that is not finite."""
        bottom, round_off = self.reduction
        x = self.most(x, bottom)
        count = self.b.fadd(x, round_off)
        return self._raised(count, self.b.fsub(x, self.b.fsub(count, round_off)))

    def small(self, x: Any) -> Any:
        """``exp(-|x|)``."""
        bottom, *parts = self.natural
        positive = self.b.fcmp_unordered("uge", x, self.r.zero)
        count, left = self._nearest(self.most(self.b.select(positive, self.b.fneg(x), x), bottom), *parts)
        return self._raised(count, self.r.mul(left, parts[0]))

    def _raised(self, count: Any, left: Any) -> Any:
        """2^left times the power of two of the integer in the last bits of `count`."""
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

    def sigmoid(self, x: Any, small: Any) -> tuple[Any, Any]:
        """``1 / (1 + exp(-x))`` and the same of -x, from ``exp(-|x|)``."""
        one, positive = ir.Constant(self.r.vector, [1.0] * self.r.lanes), self.b.fcmp_unordered("uge", x, self.r.zero)
        share = self.b.fdiv(one, self.b.fadd(one, small))
        rest = self.b.fmul(small, share)
        return self.b.select(positive, share, rest), self.b.select(positive, rest, share)

    def softplus(self, x: Any, small: Any) -> Any:
        """``max(x, 0) + log1p(small)``, the logarithm from the series of ``2 atanh(e / (2 + e))``."""
        two = ir.Constant(self.r.vector, [2.0] * self.r.lanes)
        ratio = self.b.fdiv(small, self.b.fadd(two, small))
        log = self.r.mul(ratio, self.horner(self.atanh, self.r.mul(ratio, ratio)))
        return self.r.add(self.most(x, self.r.zero), log)
