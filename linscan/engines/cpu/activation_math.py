"""The functions behind activations and gates, number by number, for loops that become vector instructions.

All rest on ``e^x`` as `linscan.engines.cpu.rnn_math` makes it. The normal distribution below zero is
``Φ(-t) = e^(-t²/2) G(s) / (t + 4)`` for t >= 0, with a polynomial G of ``s = (t - 4) / (t + 4)`` and the square made in
two parts, so that the exponential does not blow its rounding up. Values are within 4 eps until they vanish: at e^-87 in
float32, e^-700 in float64.
"""

from functools import cache
from typing import Any

import numpy as np

from linscan.engines.cpu import rnn_math
from linscan.engines.cpu.jit import jit
from linscan.engines.cpu.rnn_math import exp_of_sum, exponential

# G, through its values at Chebyshev points of s made with forty digits; the highest power first. Within 2e-9, 2e-17.
_SINGLE = (
    2.197904341e-05,
    -1.725992292e-06,
    -0.0002177710657,
    0.0001336404262,
    0.001624247637,
    -0.003479943026,
    -0.00753868878,
    0.060396644,
    -0.1865219849,
    0.3871373944,
    -0.6078966402,
    0.7552851305,
)
_DOUBLE = (
    3.51569242668093e-10,
    -1.1742107539247065e-10,
    -3.798041859957449e-09,
    -6.021003727951476e-10,
    2.1604426842720404e-08,
    1.7881872409503415e-08,
    -8.713294621467491e-08,
    -1.5982676610438677e-07,
    2.727176083262385e-07,
    1.0248325060946323e-06,
    -6.299974265164222e-07,
    -5.921638801978817e-06,
    7.167263978705016e-07,
    3.5145122560125815e-05,
    -1.908265085342679e-06,
    -0.00023109501999200649,
    0.00013334431270030784,
    0.0016308184678064444,
    -0.0034796923673884156,
    -0.007540188967419565,
    0.06039657489093607,
    -0.18652185795963533,
    0.38713740074221453,
    -0.6078966419718923,
    0.7552851304157515,
)


@cache
def constants(dtype: np.dtype) -> tuple[Any, ...]:
    """What the functions below take as `c`: tuples of numbers of `dtype`, so that nothing is done in another."""
    double = dtype.itemsize == 8
    limit, places = (700.0, 52 - 18) if double else (87.0, 23 - 6)
    normal = np.sqrt(2 * limit), 1.5 * 2.0**places, 4.0, 0.5, 1 / np.sqrt(2 * np.pi)
    tanh = 2 * np.sqrt(2 / np.pi), 0.044715, 3 * 0.044715, 30.0
    own = normal, _DOUBLE if double else _SINGLE, tanh
    return *rnn_math.constants(dtype), *(tuple(map(dtype.type, group)) for group in own)


@jit
def logistic(x, c):
    """σ(x) and σ(-x), both with all their digits."""
    one, t = c[1][-1], abs(x)
    scale, p = exponential(-t, c)
    e = one - one if t > c[0][5] else scale * p + scale  # zero, for x may be large and multiply it
    large = one / (one + e)
    small = e * large
    return (large, small) if x >= 0 else (small, large)


@jit
def normal(x, c):
    """Φ(x) and its density."""
    limit, short, four, half, density = c[3]
    one, size = c[1][-1], abs(x)
    t = limit if size > limit else size
    high = (t + short) - short  # few digits: its square is exact
    scale, p = exp_of_sum(-half * high * high, half * (high - t) * (high + t), c)
    e = one - one if size > limit else scale * p + scale
    share = one / (t + four)
    s = (t - four) * share
    g = c[4][0]
    for i in range(1, len(c[4])):
        g = g * s + c[4][i]
    below = e * (g * share)
    return (below if x < 0 else one - below), density * e


@jit
def tanh_gate(x, c):
    """The σ(w) that approximates Φ(x), σ(-w), and dw/dx."""
    slope, cubic, triple, limit = c[5]
    x = limit if x > limit else x  # beyond it, 0 and 1; powers would overflow
    x = -limit if x < -limit else x
    square, one = x * x, c[1][-1]
    share, rest = logistic(slope * x * (one + cubic * square), c)
    return share, rest, slope * (one + triple * square)
