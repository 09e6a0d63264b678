"""Short causal filters on the GPU: one pass over memory, in any layout, with state, resets and either direction."""

from typing import Any

import cupy

from linscan._arrays import Array, grad_like
from linscan.engines.cuda.fir import Reach, fir, fir_taps
from linscan.engines.reference import short_conv as reference


def short_conv(u: Array, w: Array, bias: Array | None, state: Array | None, *, workers: Any, **options: Any) -> Array:
    """See `linscan.ops.short_conv.short_conv`; arguments as in the reference."""
    y = cupy.empty(u.shape, u.dtype)
    if fir(u, w, bias, state, y, options["reset"], _reach(u, w, **options)):
        return y
    return reference.short_conv(u, w, bias, state, **options)


def short_conv_pullback(
    u: Array, w: Array, bias: Array | None, state: Array | None, dy: Array, *, workers: Any, **options: Any
) -> tuple[Array, Array, Array | None, Array | None]:
    """See `linscan.ops.short_conv.short_conv_vjp`: the filter turned round, and one pass for weights and bias."""
    reach, reset = _reach(u, w, **options), options["reset"]
    back = reach._replace(step=-reach.step)
    du, dstate = cupy.empty(u.shape, u.dtype), None
    done = fir(dy, w, None, None, du, reset, back, True)
    if state is not None:
        dstate = cupy.empty(state.shape, u.dtype)
        done = done and fir(dy, w, None, None, dstate, reset, back._replace(first=reach.past), True)
    sums = fir_taps(u, state, dy, reset, w.shape[-1], reach) if done else None
    if sums is None:
        return reference.short_conv_pullback(u, w, bias, state, dy, **options)
    return du, grad_like(sums[..., :-1], w), grad_like(sums[..., -1], bias), dstate


def _reach(u: Array, w: Array, *, axis: int, dilation: int, reverse: bool, reset: Array | None) -> Reach:
    span = (w.shape[-1] - 1) * dilation
    if reverse:
        return Reach(axis, -dilation, past=u.shape[axis], reverse=True)
    return Reach(axis, dilation, past=-span)
