"""MEGA's damped moving average, N of them for every channel.

    h[t] = α β u[t] + (1 - α δ) h[t-1],  y = silu(Σ_n η h / sqrt(N) + ω u),    α, δ = σ of what is trained

Without a state or reset a convolution with the kernel ``Σ_n η α β (1 - α δ)^l / sqrt(N)``, else the recurrence.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import fft_conv_vjp, ssm_kernel_vjp
from linscan._arrays import Array, sum_rows
from linscan.models.layer import Params, State
from linscan.models.recurrence import recurrence_vjp
from linscan.ops.activation import activation_vjp, sigmoid


def init_ema(rng: np.random.Generator, channels: int, states: int) -> Params:
    """``alpha``, ``delta``, ``beta``, ``eta`` (D, N) and ``omega`` (D,)."""
    wide = channels, states
    return {
        "alpha": 0.2 * rng.standard_normal(wide),
        "delta": 0.2 * rng.standard_normal(wide),
        "beta": 0.02 * rng.standard_normal(wide) + (-1.0) ** np.arange(states),
        "eta": rng.standard_normal(wide),
        "omega": rng.standard_normal(channels),
    }


def ema_vjp(
    params: Params, u: Array, state: State, reset: Array | None
) -> tuple[tuple[Array, State], Callable[[Array, State], tuple[Params, Array, State]]]:
    """Averages of u, (…, T, D), the state (…, D, N), and the pullback to the parameters, u and the state."""
    alpha, delta = sigmoid(params["alpha"]), sigmoid(params["delta"])
    a, w = 1 - alpha * delta, alpha * params["beta"]
    c = params["eta"] * u.dtype.type(params["eta"].shape[-1] ** -0.5)
    back1: Any
    final: State = None
    if recurrent := state is not None or reset is not None:
        (h, final), back1 = recurrence_vjp(a, w * u[..., None], state, reset, 2)
        s = (c * h).sum(-1)
    else:
        k, back1 = ssm_kernel_vjp(a, c * w, u.shape[-2])
        s, back2 = fft_conv_vjp(u, k.T, axis=-2)
    y, back3 = activation_vjp(s + params["omega"] * u, "silu")

    def pullback(dy: Array, dfinal: State) -> tuple[Params, Array, State]:
        ds, dfirst = back3(dy), None
        du = params["omega"] * ds
        if recurrent:
            da, db, dfirst = back1(ds[..., None] * c, dfinal)
            du = du + (db * w).sum(-1)
            dc, dw = sum_rows(ds[..., None] * h, 2), sum_rows(db * u[..., None], 2)
        else:
            du_conv, dk, _ = back2(ds)
            da, dcw = back1(dk.T)
            du, dc, dw = du + du_conv, w * dcw, c * dcw
        grads = {
            "alpha": (dw * params["beta"] - da * delta) * alpha * (1 - alpha),
            "delta": -da * alpha * delta * (1 - delta),
            "beta": dw * alpha,
            "eta": dc * u.dtype.type(params["eta"].shape[-1] ** -0.5),
            "omega": sum_rows(ds * u),
        }
        return grads, du, dfirst

    return (y, final), pullback
