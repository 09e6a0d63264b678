"""Several delta-rule steps per token as steps of their own: the first decays, the query reads after the last."""

from typing import Any

import numpy as np

from linscan import _arrays
from linscan.ops.matrix_state import flip_time


def expand(who: str, n: int, reverse: bool, **named: Any) -> tuple[Any, ...]:
    """The arguments q, k, v, beta, g, w, reset of T tokens as those of T n steps, tokens in the order they are run.

    k, v, beta and w have T n steps already.
    """
    xp, q, k, v, beta, g, w, reset = _arrays.take(who, **named)
    if getattr(q, "ndim", 0) < 2:
        raise ValueError(f"{who}: q must have a time and a feature axis; got {np.shape(q)}")
    length, ready = q.shape[-2], []
    for name, x, axis in (("k", k, -2), ("v", v, -2), ("beta", beta, -1), ("w", w, -2)):
        constant = name == "beta" and (np.ndim(x) == 0 or x.shape[-1] == 1)
        if x is not None and not constant and (x.ndim < -axis or x.shape[axis] != length * n):
            raise ValueError(f"{who}: {name} must have T n_householder = {length * n} steps; got {tuple(np.shape(x))}")
        ready.append(x if x is None or constant else turned(x, axis, n, reverse))
    g = None if g is None else _spread(who, "g", xp.asarray(g), length, n, 0, reverse, q.ndim)
    reset = None if reset is None else _spread(who, "reset", xp.asarray(reset), length, n, 0, reverse, q.ndim)
    return _spread(who, "q", q, length, n, n - 1, reverse, q.ndim), *ready[:3], g, ready[3], reset


def turned(x: Any, axis: int, n: int, reverse: bool) -> Any:
    """`x` with its tokens of n steps in reverse order, the steps of each in theirs; `x` itself unless `reverse`."""
    if not reverse:
        return x
    axis %= x.ndim
    shape = x.shape
    split = x.reshape(*shape[:axis], shape[axis] // n, n, *shape[axis + 1 :])
    return flip_time(split, axis - split.ndim).reshape(shape)


def collected(x: Any, axis: int, n: int, place: int, reverse: bool) -> Any:
    """The rows of `x` that belong to the step `place` of each token, tokens in the caller's order."""
    axis %= x.ndim
    rows = x[(*[slice(None)] * axis, slice(place, None, n))]
    return flip_time(rows, axis - x.ndim) if reverse else rows


def read_last(x: Any, n: int, reverse: bool) -> Any:
    """`x` (…, T, V) at the last step of each token and zeros at the others, in the order they are run."""
    if n == 1:
        return flip_time(x, -2) if reverse else x
    steps = _arrays.namespace(x).zeros((*x.shape[:-2], x.shape[-2] * n, x.shape[-1]), x.dtype)
    collected(steps, -2, n, n - 1, reverse)[...] = x
    return steps


def _spread(who: str, name: str, x: Any, length: int, n: int, place: int, reverse: bool, ndim: int) -> Any:
    """`x` at the step `place` of each token, zeros elsewhere."""
    x = x if x.ndim else x.reshape((1,) * (ndim - 1))
    xp, axis = _arrays.namespace(x), -2 if x.ndim == ndim and name != "reset" else -1
    tail = x.shape[axis + 1 :] if axis != -1 else ()
    x = _arrays.broadcast_to(who, name, x, (*x.shape[:axis], length, *tail))
    steps = xp.zeros((*x.shape[:axis], length, n, *tail), x.dtype)
    steps[(..., place, *[slice(None)] * len(tail))] = flip_time(x, axis) if reverse else x
    return steps.reshape(*x.shape[:axis], length * n, *tail)
