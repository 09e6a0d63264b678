"""Mamba's scan with decays from -1 to 1: states that can turn their sign, at the price of an array of all of them."""

from collections.abc import Callable
from typing import Any

from linscan._arrays import Array, namespace, sum_rows
from linscan.models.recurrence import recurrence_vjp
from linscan.ops.activation import activation_vjp


def signed_scan_vjp(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    z: Array,
    dt_bias: Array,
    h0: Array | None,
    *,
    dt_softplus: bool = True,
    reset: Array | None = None,
) -> tuple[tuple[Array, Array], Callable[..., tuple[Any, ...]]]:
    """`linscan.selective_scan_vjp` where ``2 exp(Δ A) - 1`` is the decay; real, not grouped, softplus always."""
    xp = namespace(u)
    step, back1 = activation_vjp(dt + dt_bias, "softplus")
    e = xp.exp(step[..., None] * A)
    x = step * u
    (h, final), back2 = recurrence_vjp(2 * e - 1, x[..., None] * B[..., None, :], 0 if h0 is None else h0, reset, 2)
    s = (h @ C[..., None])[..., 0] + D * u
    gate, back3 = activation_vjp(z, "silu")

    def pullback(dy: Array, dh: Array | None) -> tuple[Any, ...]:
        # s = C h + D u, h from the decay 2 e - 1, e = exp(Δ A), and from b = Δ u B.
        ds = dy * gate
        dC = (ds[..., None, :] @ h)[..., 0, :]
        da, db, dh0 = back2(ds[..., None] * C[..., None, :], dh)
        de = 2 * da * e
        dB, dx = (x[..., None, :] @ db)[..., 0, :], (db @ B[..., None])[..., 0]
        ddt = back1((de * A).sum(-1) + dx * u)
        dA, dD = sum_rows(de * step[..., None], 2), sum_rows(ds * u)
        return dx * step + ds * D, ddt, dA, dB, dC, dD, back3(dy * s), sum_rows(ddt), dh0

    return (s * gate, final), pullback
