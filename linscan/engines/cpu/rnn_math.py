"""The logistic function, tanh and log(1 + e^-|x|) over stretches of an array, as loops that become vector instructions.

The library functions are called number by number, which would cost ten times the matrix products of a small head. All
three here rest on ``e^x - 1 = 2^n p(r) + (2^n - 1)`` with ``x = n log 2 + r``, |r| <= log(2) / 2, and p the power
series of ``e^r - 1``: a relative error of about two roundings, also near zero, where ``1 - e^x`` would cancel.
"""

from functools import cache
from math import factorial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from linscan.engines.cpu.jit import jit


@cache
def constants(dtype: np.dtype) -> tuple[Any, ...]:
    """What the functions below take as `c`: tuples of numbers of `dtype`, so that nothing is done in another."""
    double = dtype.itemsize == 8
    bits, terms, odd = (52, 13, 17) if double else (23, 7, 8)
    high = float(np.float32(np.log(2.0))) if double else 0.693359375  # few digits: n times it is exact
    split = 1 / np.log(2.0), high, float(np.longdouble(2).item() and (np.log(np.longdouble(2)) - np.longdouble(high)))
    limit = 700.0 if double else 87.0
    number = dtype.type
    reduce = tuple(map(number, (*split, 1.5 * 2.0**bits, -limit, limit)))
    series = tuple(number(1 / factorial(k)) for k in range(terms, 0, -1))
    atanh = tuple(number(2 / (2 * k + 1)) for k in range(odd, -1, -1))
    return reduce, series, atanh


@intrinsic
def _shifted(typingctx: Any, x: Any) -> Any:
    """2^n, where the lowest bits of `x` hold n: the sum of n and 1.5 times 2 to the length of the mantissa."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        double = signature.args[0] == types.float64
        whole, bias, shift = (ir.IntType(64), 1023, 52) if double else (ir.IntType(32), 127, 23)
        n = builder.add(builder.bitcast(args[0], whole), ir.Constant(whole, bias))
        return builder.bitcast(builder.shl(n, ir.Constant(whole, shift)), args[0].type)

    return x(x), codegen


def _shifted_in_python(x: Any) -> Any:
    whole, bias, shift = (np.int64, 1023, 52) if x.dtype.itemsize == 8 else (np.int32, 127, 23)
    return ((x.view(whole) + whole(bias)) << whole(shift)).view(x.dtype)


_power: Any = _shifted_in_python if getattr(numba.config, "DISABLE_JIT", False) else _shifted


@jit
def exponential(x, c):
    """2^n and p(r); their product, and the former, make up e^x."""
    x = c[0][4] if x < c[0][4] else x
    x = c[0][5] if x > c[0][5] else x
    return exp_of_sum(x, x - x, c)


@jit
def exp_of_sum(x, more, c):
    """The same of ``x + more``, within the limits, where the digits of `more` count that the sum would lose."""
    reduce, series = c[0], c[1]
    k = (x + more) * reduce[0] + reduce[3]
    n = k - reduce[3]
    r = x - n * reduce[1] - n * reduce[2] + more
    p = series[0]
    for i in range(1, len(series)):
        p = p * r + series[i]
    return _power(k), p * r


@jit
def sigmoid(a, c):
    one = c[1][-1]
    for i in range(len(a)):
        scale, p = exponential(-a[i], c)
        a[i] = one / (one + (scale * p + scale))


@jit
def tanh(a, c):
    one = c[1][-1]
    for i in range(len(a)):
        x = a[i]
        scale, p = exponential(-abs(x + x), c)
        e = scale * p + (scale - one)
        t = -e / (e + (one + one))
        a[i] = t if x >= 0 else -t


@jit
def log1pexp(a, c):
    """``log(1 + e^-|x|)``, by log(1 + e) = 2 atanh(e / (2 + e))."""
    one, series = c[1][-1], c[2]
    for i in range(len(a)):
        scale, p = exponential(-abs(a[i]), c)
        e = scale * p + scale
        q = e / (e + (one + one))
        square, total = q * q, series[0]
        for k in range(1, len(series)):
            total = total * square + series[k]
        a[i] = q * total
