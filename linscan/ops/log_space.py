"""What `lse_scan`, `max_scan` and `softmax_average` share: their checks, and moving along time in their gradients."""

from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.ops.scan import prepare as prepare_scan


def prepare(who: str, a: Any, b: Any, h0: Any, reset: Any, axis: int) -> tuple[Any, ...]:
    """As for `scan`, of real numbers."""
    *arrays, axis, dtype = prepare_scan(who, a, b, h0, reset, axis)
    check_real(who, dtype)
    return *arrays, axis, dtype


def check_real(who: str, dtype: np.dtype) -> None:
    """Raise unless numbers of `dtype` have an order."""
    if dtype.kind == "c":
        raise TypeError(f"{who}: arguments must be real; got {dtype}")


def before(h: Array, h0: Array | None, empty: float, axis: int, reverse: bool) -> Array:
    """The states before each step, in the arithmetic's dtype: `h` moved on by one, `h0` (or `empty`) in front."""
    xp, dtype = _arrays.namespace(h), _arrays.accum_dtype(h.dtype)
    h = xp.moveaxis(h, axis, 0)
    first = xp.full(h.shape[1:], empty, dtype) if h0 is None else h0.astype(dtype, copy=False)
    parts = [h[1:], first[None]] if reverse else [first[None], h[:-1]]
    moved = xp.concatenate([x.astype(dtype, copy=False) for x in parts])[: len(h)]
    return xp.moveaxis(moved, 0, axis)


def carried(a: Array, h: Array, h0: Array | None, reset: Array | None, axis: int, reverse: bool) -> Array:
    """``a[t] + h[t-1]``, minus infinity where a sequence starts."""
    xp = _arrays.namespace(h)
    with np.errstate(invalid="ignore"):
        total = a + before(h, h0, -np.inf, axis, reverse)
    return total if reset is None else xp.where(reset, -np.inf, total)


def after(x: Array, axis: int, reverse: bool) -> Array:
    """The values of the next step at each step, 0 at the last one."""
    xp = _arrays.namespace(x)
    x = xp.moveaxis(x, axis, 0)
    end = xp.zeros((1, *x.shape[1:]), x.dtype)
    parts = [end, x[:-1]] if reverse else [x[1:], end]
    return xp.moveaxis(xp.concatenate(parts)[: len(x)], 0, axis)


def first(x: Array, axis: int, reverse: bool) -> Array:
    """The values at the first step; zero where there is no step."""
    xp = _arrays.namespace(x)
    x = xp.moveaxis(x, axis, 0)
    return x[-1 if reverse else 0] if len(x) else xp.zeros(x.shape[1:], x.dtype)


def backwards(p: Array, dh: Array, axis: int, reverse: bool, workers: int | None) -> Array:
    """``δ[t] = dh[t] + p[t+1] δ[t+1]``, in the dtype of `p`."""
    xp = _arrays.namespace(p)
    dh = dh.astype(p.dtype, copy=False)
    p = xp.broadcast_to(after(p, axis, reverse), dh.shape)
    options = {"axis": axis, "reverse": not reverse, "reset": None, "out": None, "workers": workers}
    return pick("scan", p.dtype, dh)(p, dh, None, **options)
