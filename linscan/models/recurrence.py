"""The scan and the short filter that layers share, with the state as layers have it: None, 0, or an array."""

from collections.abc import Callable
from typing import Any

from linscan import _arrays, scan_vjp, short_conv_vjp
from linscan._arrays import Array
from linscan.models.layer import Params, State


def start(state: State, shape: tuple[int, ...], like: Array) -> Array | None:
    """The state as an array to start from: None and arrays pass through, 0 becomes zeros of `shape`."""
    return _arrays.namespace(like).zeros(shape, like.dtype) if isinstance(state, int) else state


def recurrence_vjp(
    a: Array, b: Array, state: State, reset: Array | None, axes: int, *, reverse: bool = False
) -> tuple[tuple[Array, State], Callable[..., tuple[Array, Array, State]]]:
    """`linscan.scan` where a state has the last `axes` axes and time stands before them.

    Returns all states and the final one (None if `state` is), and ``pullback(dx, dfinal)`` to ``(da, db, dstate)``. In
    reverse, sequences begin at the last steps that `reset` implies.
    """
    xp, axis = _arrays.namespace(b), -1 - axes
    at = (..., slice(0, 1) if reverse else slice(-1, None), *(slice(None),) * axes)
    h0 = start(state, b.shape[:axis] + b.shape[b.ndim + axis + 1 :], b)
    if reset is not None:
        reset = firsts(xp.asarray(reset), reverse)
        reset = reset.reshape(*reset.shape, *(1,) * axes)
    x, back = scan_vjp(a, b, h0, axis=axis, reverse=reverse, reset=reset)
    length = b.shape[axis]
    final = h0 if state is None or not length else x[at].squeeze(axis).copy()

    def pullback(dx: Array, dfinal: Array | None) -> tuple[Array, Array, State]:
        if dfinal is not None and length:
            dx = dx.copy()
            dx[at] += xp.expand_dims(dfinal, axis)
        da, db, dh0 = back(dx)
        dh0 = dh0 if length or dfinal is None else dfinal
        return da, db, None if isinstance(state, int) else dh0

    return (x, final), pullback


def filter_vjp(u: Array, params: Params, state: State, reset: Array | None) -> tuple[tuple[Array, State], Any]:
    """`linscan.short_conv` with a layer's weights ``w`` and ``b``, if any, and its state: None wants none back."""
    w, b = params["w"], params.get("b")
    marks = None if reset is None else reset[..., None]
    if state is not None:
        return short_conv_vjp(u, w, b, state, reset=marks)
    y, back = short_conv_vjp(u, w, b, reset=marks)
    return (y, None), lambda dy, dstate: back(dy)


def firsts(reset: Array, reverse: bool) -> Array:
    """The steps that forget what came before them in the direction of the run."""
    if not reverse:
        return reset
    xp = _arrays.namespace(reset)
    return xp.concatenate([reset[..., 1:], xp.zeros_like(reset[..., :1])], -1)
