"""What `short_conv` works on and what it remembers: its arguments in one form, the state it returns, their gradient.

Apart from `short_conv` because the forward, the step and the gradient all stand on it.
"""

from typing import Any, NamedTuple

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines.reference.short_conv import sequence_numbers


class Problem(NamedTuple):
    """All arguments as arrays of one dtype; `w` and `bias` have every axis of `u` but time, each in full or 1."""

    u: Array
    w: Array
    bias: Array | None
    state: Array | None
    options: dict[str, Any]


def prepare(
    who: str, u: Any, w: Any, bias: Any, state: Any, axis: int, dilation: int, reverse: bool, reset: Any
) -> Problem:
    """The arguments of `short_conv` after all checks."""
    xp, u, w, bias, state, reset = _arrays.take(who, u=u, w=w, bias=bias, state=state, reset=reset)
    dtype = _arrays.result_dtype(who, u=u, w=w, bias=bias, state=state)
    u, w = _arrays.cast(xp, u, dtype), _arrays.cast(xp, w, dtype)
    axis, dilation = _arrays.check_axis(who, axis, u.ndim), _arrays.check_count(who, "dilation", dilation, 1)
    if w.ndim == 0 or w.shape[-1] == 0:
        raise ValueError(f"{who}: w needs at least one tap along its last axis; got shape {w.shape}")
    before, length, after = u.shape[:axis], u.shape[axis], u.shape[axis + 1 :]
    others = (*before, *after)
    _arrays.check_broadcast(who, "w without its last axis", w.shape[:-1], others)
    w = w if w.ndim == u.ndim else w.reshape((1,) * (u.ndim - w.ndim) + w.shape)
    if bias is not None:
        bias = xp.asarray(bias, dtype)
        _arrays.check_broadcast(who, "bias", bias.shape, others)
        bias = bias.reshape((1,) * (u.ndim - 1 - bias.ndim) + bias.shape)
    if state is not None:
        shape = (*before, (w.shape[-1] - 1) * dilation, *after)
        state = _arrays.broadcast_to(who, "state", xp.asarray(state, dtype), shape)
    if reset is not None:
        reset = xp.asarray(reset)
        if reset.dtype.kind not in "biu":
            raise TypeError(f"{who}: reset must be boolean; got {reset.dtype}")
        _arrays.check_broadcast(who, "reset", reset.shape, u.shape)
        reset = reset.reshape((1,) * (u.ndim - reset.ndim) + reset.shape).astype(bool, copy=False)
        reset = xp.broadcast_to(reset, (*reset.shape[:axis], length, *reset.shape[axis + 1 :]))
    return Problem(u, w, bias, state, {"axis": axis, "dilation": dilation, "reverse": bool(reverse), "reset": reset})


def carry(p: Problem) -> Array:
    """The state that continues the signal, in memory of its own."""
    xp, axis, reverse = _arrays.namespace(p.u), p.options["axis"], p.options["reverse"]
    u, state = (xp.moveaxis(x, axis, -1) for x in (p.u, p.state))
    length, span = u.shape[-1], state.shape[-1]
    if reverse:
        last = xp.concatenate([u[..., :span], state[..., : max(span - length, 0)]], -1)
    else:
        last = xp.concatenate([state[..., min(length, span) :], u[..., max(length - span, 0) :]], -1)
    return xp.ascontiguousarray(xp.moveaxis(_kept(p, last), -1, axis))


def _kept(p: Problem, state: Array) -> Array:
    """A state, time last, zero where its inputs belong to a sequence that a reset has ended."""
    xp, reset, reverse = _arrays.namespace(p.u), p.options["reset"], p.options["reverse"]
    if reset is None:
        return state
    span = state.shape[-1]
    number = sequence_numbers(xp.moveaxis(reset, p.options["axis"], -1), span, reverse)
    if reverse:
        return xp.where(number[..., :span] == number[..., :1], state, 0)
    return xp.where(number[..., number.shape[-1] - span :] == number[..., -1:], state, 0)


def pass_on(p: Problem, du: Array, dpast: Array, dstate: Array) -> None:
    """Add the cotangent of the final state to the gradients of the inputs that it holds."""
    xp, axis, reverse = _arrays.namespace(du), p.options["axis"], p.options["reverse"]
    du, dpast, dstate = (xp.moveaxis(x, axis, -1) for x in (du, dpast, dstate))
    flow, length, span = _kept(p, dstate), du.shape[-1], dstate.shape[-1]
    new = min(length, span)  # inputs in it that came with u
    if reverse:
        du[..., :new] += flow[..., :new]
        dpast[..., : span - new] += flow[..., new:]
    else:
        du[..., length - new :] += flow[..., span - new :]
        dpast[..., new:] += flow[..., : span - new]
