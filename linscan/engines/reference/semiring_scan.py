"""The plain loops over time of the log-space scans, in array operations, and the two weights all of them stand on.

Minus infinity is the zero of these recurrences, and minus infinity minus itself is the trap: nothing here subtracts
two numbers before it has looked whether the larger is finite.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype, namespace

quiet = np.errstate(all="ignore")  # what is not finite is chosen away, after it was computed


@quiet
def logaddexp(x: Array, y: Array) -> Array:
    """``log(exp(x) + exp(y))``: minus infinity twice is minus infinity; plus infinity is not NaN."""
    xp = namespace(x, y)
    high, low = xp.maximum(x, y), xp.minimum(x, y)
    return xp.where(xp.isfinite(high), high + xp.log1p(xp.exp(low - high)), high)


@quiet
def weights(carried: Array, b: Array) -> tuple[Array, Array]:
    """The shares of `carried` and `b` in their logaddexp: they add up to 1, or are both 0 where nothing is there."""
    xp = namespace(carried, b)
    difference = carried - b
    ratio = xp.exp(-xp.abs(difference))
    newer, older = xp.where(difference < 0, 1, ratio), xp.where(difference < 0, ratio, 1)
    empty = xp.maximum(carried, b) == -np.inf
    return xp.where(empty, 0, older / (1 + ratio)), xp.where(empty, 0, newer / (1 + ratio))


@quiet
def share(weight: Array, x: Array) -> Array:
    """``weight x``, 0 where the weight is 0, even if `x` is not finite."""
    return weight * namespace(x).where(weight == 0, 0, x)


def lse_scan(
    a: Array, b: Array, h0: Array | None, *, axis: int, reverse: bool, reset: Array | None, workers: Any
) -> Array:
    return _loop(logaddexp, a, b, h0, axis, reverse, reset)


def max_scan(
    a: Array, b: Array, h0: Array | None, *, axis: int, reverse: bool, reset: Array | None, workers: Any
) -> Array:
    return _loop(namespace(b).maximum, a, b, h0, axis, reverse, reset)


@quiet
def _loop(join: Callable[..., Array], a: Array, b: Array, h0: Any, axis: int, reverse: bool, reset: Any) -> Array:
    xp = namespace(b)
    compute = accum_dtype(b.dtype)
    result = xp.empty(b.shape, b.dtype)
    a, b, hs = (xp.moveaxis(x, axis, 0) for x in (a, b, result))
    starts = None if reset is None else xp.moveaxis(reset, axis, 0)
    h = xp.full(b.shape[1:], -np.inf, compute) if h0 is None else h0.astype(compute)
    for t in _times(len(b), reverse):
        carried = a[t].astype(compute, copy=False) + h
        if starts is not None:
            carried = xp.where(starts[t], -np.inf, carried)
        h = join(carried, b[t].astype(compute, copy=False))
        hs[t] = h
    return result


@quiet
def softmax_average(
    s: Array,
    v: Array,
    w: Array,
    z0: Array | None,
    y0: Array | None,
    *,
    axis: int,
    reverse: bool,
    reset: Array | None,
    workers: Any,
) -> tuple[Array, Array]:
    xp = namespace(v)
    compute = accum_dtype(v.dtype)
    means, sums = xp.empty(v.shape, v.dtype), xp.empty(s.shape, s.dtype)
    s, v, w, ys, zs = (xp.moveaxis(x, axis, 0) for x in (s, v, w, means, sums))
    starts = None if reset is None else xp.moveaxis(reset, axis, 0)
    z = xp.full(s.shape[1:], -np.inf, compute) if z0 is None else z0.astype(compute)
    y = xp.zeros(v.shape[1:], compute) if y0 is None else y0.astype(compute)
    for t in _times(len(v), reverse):
        carried, score = w[t].astype(compute, copy=False) + z, s[t].astype(compute, copy=False)
        if starts is not None:
            carried = xp.where(starts[t], -np.inf, carried)
        p, q = weights(carried, score)
        y, z = share(p, y) + share(q, v[t].astype(compute, copy=False)), logaddexp(carried, score)
        ys[t], zs[t] = y, z
    return means, sums


def _times(length: int, reverse: bool) -> range:
    return range(length - 1, -1, -1) if reverse else range(length)
