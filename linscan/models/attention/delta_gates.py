"""The gates of the delta rule: how much each step replaces, and how much a head forgets before it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan._arrays import Array, namespace, sum_rows
from linscan.models.attention.heads import channels, heads
from linscan.models.initial import log_steps, uniform_fan
from linscan.models.layer import Params
from linscan.ops.activation import activation_vjp, softplus_inverse
from linscan.ops.dense import dense_vjp


def init_gates(rng: np.random.Generator, D: int, count: int, steps: int, decay: bool) -> Params:
    """``W_beta``, and for a decay ``W_a``, ``A_log`` and ``dt_bias``."""
    params: Params = {"W_beta": {"w": uniform_fan(rng, (D, steps * count), D)}}
    if decay:
        params["W_a"] = {"w": uniform_fan(rng, (D, count), D)}
        params["A_log"] = np.log(rng.uniform(1, 16, count))
        params["dt_bias"] = softplus_inverse(np.exp(log_steps(rng, (count,), 1e-3, 1e-1)))
    return params


def beta_vjp(params: Params, u: Array, count: int, steps: int, most: int) -> tuple[Array, Callable[[Array], Any]]:
    """``most σ(W_beta u)`` as (…, H, T steps), and the pullback to ``(du, grads)``."""
    z, back1 = dense_vjp(u, params["W_beta"]["w"])
    s, back2 = activation_vjp(z, "sigmoid")

    def pullback(dbeta: Array) -> tuple[Array, Params]:
        du, dw, _ = back1(back2(most * channels(dbeta[..., None], steps)))
        return du, {"W_beta": {"w": dw}}

    return heads(most * s, count, steps)[..., 0], pullback


def decay_vjp(params: Params, u: Array) -> tuple[Array | None, Callable[[Array], Any]]:
    """``-e^A_log softplus(W_a u + dt_bias)`` as (…, H, T), or None without such a gate; and the pullback as above."""
    if "W_a" not in params:
        return None, lambda dg: (0, {})
    a, back1 = dense_vjp(u, params["W_a"]["w"])
    dt, back2 = activation_vjp(a + params["dt_bias"], "softplus")
    rate = -namespace(u).exp(params["A_log"])

    def pullback(dg: Array) -> tuple[Array, Params]:
        dg = dg.swapaxes(-1, -2)
        da = back2(rate * dg)
        du, dw, _ = back1(da)
        return du, {"W_a": {"w": dw}, "A_log": sum_rows(dg * rate * dt), "dt_bias": sum_rows(da)}

    return (rate * dt).swapaxes(-1, -2), pullback
