"""What layers with a matrix state for every head share: their way in, unit keys, and their way out."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan._arrays import Array
from linscan.models.initial import uniform_fan
from linscan.models.layer import Params
from linscan.models.recurrence import filter_vjp
from linscan.ops.activation import activation_vjp
from linscan.ops.dense import dense_vjp
from linscan.ops.norm import rms_norm_vjp


def heads(x: Array, count: int, steps: int = 1) -> Array:
    """Channels (…, T, steps H K) as heads with the steps of a token side by side, (…, H, T steps, K)."""
    lead, T = x.shape[:-2], x.shape[-2]
    parts = x.reshape(*lead, T, steps, count, x.shape[-1] // (steps * count)).swapaxes(-2, -3).swapaxes(-3, -4)
    return parts.reshape(*lead, count, T * steps, parts.shape[-1])


def channels(x: Array, steps: int = 1) -> Array:
    """What `heads` was given."""
    *lead, count, length, width = x.shape
    parts = x.reshape(*lead, count, length // steps, steps, width).swapaxes(-3, -4).swapaxes(-2, -3)
    return parts.reshape(*lead, length // steps, steps * count * width)


def width(who: str, name: str, given: int | None, channels: int, parts: int) -> int:
    """The width `given`, or that of one of so many `parts` of the channels."""
    if given is None and channels % parts:
        raise ValueError(f"{who}: channels must be a multiple of {parts} where {name} is not given; got {channels}")
    return given or channels // parts


def init_in(rng: np.random.Generator, inputs: int, outputs: int, taps: int) -> Params:
    """``W_in``, and ``conv`` if there are taps."""
    conv = {"conv": {"w": uniform_fan(rng, (outputs, taps), taps)}} if taps else {}
    return {"W_in": {"w": uniform_fan(rng, (inputs, outputs), inputs)}} | conv


def in_vjp(params: Params, u: Array, before: Array, reset: Array | None, kind: str = "silu") -> Any:
    """``f(conv(W_in u))``, without the filter where there is none, f the activation `kind`; and the filter's state.

    The pullback is ``pullback(dx, dconv)`` to ``(du, grads, dbefore)``.
    """
    x, back1 = dense_vjp(u, params["W_in"]["w"])
    after, back2 = {}, None
    if "conv" in params:
        (x, after["conv"]), back2 = filter_vjp(x, params["conv"], before, reset)
    y, back3 = activation_vjp(x, kind)

    def pullback(dy: Array, dconv: Array | None) -> tuple[Array, Params, Params]:
        dx, grads, dbefore = back3(dy), {}, {}
        if back2 is not None:
            dx, dtaps, _, dbefore["conv"] = back2(dx, dconv)
            grads["conv"] = {"w": dtaps}
        du, dw, _ = back1(dx)
        return du, grads | {"W_in": {"w": dw}}, dbefore

    return (y, after), pullback


def unit_vjp(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Every row divided by its length, ``x / sqrt(Σ x² + 1e-6)``."""
    K = x.shape[-1]
    size = x.dtype.type(K**-0.5)
    n, back = rms_norm_vjp(x, eps=1e-6 / K)
    return size * n, lambda dy: back(size * dy)[0]


def init_out(rng: np.random.Generator, D: int, count: int, value: int, gate: bool) -> Params:
    """``norm``, ``W_g`` if there is a gate, and ``W_out``."""
    wide = count * value
    gates = {"W_g": {"w": uniform_fan(rng, (D, wide), D)}} if gate else {}
    return {"norm": {"scale": np.ones(value)}, **gates, "W_out": {"w": uniform_fan(rng, (wide, D), wide)}}


def out_vjp(params: Params, o: Array, u: Array) -> tuple[Array, Callable[[Array], tuple[Array, Any, Params]]]:
    """``W_out`` of the heads' RMS norms, (…, H, T, V), multiplied by ``silu(W_g u)`` if there is such a gate.

    The pullback gives ``(do, du, grads)``; du is 0 without a gate.
    """
    n, back1 = rms_norm_vjp(o, params["norm"]["scale"])
    x, gate = channels(n), None
    if "W_g" in params:
        z, back2 = dense_vjp(u, params["W_g"]["w"])
        gate, back3 = activation_vjp(z, "silu")
    y, back4 = dense_vjp(x if gate is None else x * gate, params["W_out"]["w"])

    def pullback(dy: Array) -> tuple[Array, Any, Params]:
        dx, dW_out, _ = back4(dy)
        grads, du = {"W_out": {"w": dW_out}}, 0
        if gate is not None:
            du, dW_g, _ = back2(back3(dx * x))
            grads["W_g"], dx = {"w": dW_g}, dx * gate
        do, dscale = back1(heads(dx, o.shape[-3]))
        return do, du, grads | {"norm": {"scale": dscale}}

    return y, pullback
