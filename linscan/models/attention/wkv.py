"""What RWKV-4 is made of: inputs mixed with the ones before them, and averages in which the present weighs its own.

    wkv[t] = (Σ_{s<t} e^{(t-1-s) w + k[s]} v[s] + e^{f + k[t]} v[t]) / (Σ_{s<t} e^{(t-1-s) w + k[s]} + e^{f + k[t]})

With a the average over s < t and z the logarithm of the sum of its weights, ``wkv = a + σ(f + k - z) (v - a)``: both
are what `linscan.softmax_average` gives, one step late, and nothing overflows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import softmax_average_vjp
from linscan._arrays import Array, namespace, sum_rows
from linscan.models.layer import Params, State
from linscan.models.recurrence import filter_vjp
from linscan.ops.activation import sigmoid


def wkv_vjp(
    k: Array, v: Array, w: Array, f: Array, start: tuple[Array | None, Array | None], marks: Array | None
) -> tuple[tuple[Array, tuple[Array, Array]], Callable[..., Any]]:
    """The weighted averages (…, T, D) of v, with `w` and `f` (D,), from a state ``(a, z)`` of (…, D) each.

    The pullback is ``pullback(dy, (da, dz))`` to ``(dk, dv, dw, df, dstart)``.
    """
    (average, log_sum), back1 = softmax_average_vjp(k, v, w, start[1], start[0], axis=-2, reset=marks)
    (a, a_end), back2 = _late_vjp(average, start[0], 0.0, marks)
    (z, z_end), back3 = _late_vjp(log_sum, start[1], -np.inf, marks)
    p = sigmoid(f + k - z)

    def pullback(dy: Array, dend: tuple[Array | None, Array | None]) -> Any:
        dlogit = dy * (v - a) * p * (1 - p)
        da, da_start = back2(dy * (1 - p), dend[0])
        dz, dz_start = back3(-dlogit, dend[1])
        dk, dv, dw, dz0, da0 = back1(da, dz)
        before = None if start[0] is None else (da_start + da0, dz_start + dz0)
        return dk + dlogit, dv + dy * p, dw, sum_rows(dlogit), before

    return (a + p * (v - a), (a_end, z_end)), pullback


def _late_vjp(x: Array, first: Array | None, empty: float, marks: Array | None) -> Any:
    """`x` one step late, `empty` where nothing came before; its last entry; the pullback to x and `first`."""
    xp, shape = namespace(x), (*x.shape[:-2], 1, x.shape[-1])
    head = xp.full(shape, empty, x.dtype) if first is None else first[..., None, :]
    whole = xp.concatenate([head, x], -2)
    late = whole[..., :-1, :] if marks is None else xp.where(marks, x.dtype.type(empty), whole[..., :-1, :])

    def pullback(dlate: Array, dend: Array | None) -> tuple[Array, Array]:
        dwhole = xp.zeros_like(whole)
        dwhole[..., :-1, :] = dlate if marks is None else xp.where(marks, 0, dlate)
        if dend is not None:
            dwhole[..., -1, :] += dend
        return dwhole[..., 1:, :], dwhole[..., 0, :]

    return (late, whole[..., -1, :].copy()), pullback


def mixed_vjp(params: Params, names: str, u: Array, before: State, reset: Array | None) -> Any:
    """``μ u[t] + (1 - μ) u[t-1]`` for ``mix_k`` and its like, by name, and the last u as a state.

    The pullback is ``pullback(dm, dlast)`` to ``(du, grads, dbefore)``.
    """
    delay = namespace(u).arange(2, dtype=u.dtype)  # the taps 0 and 1, made where u lives
    (old, last), back = filter_vjp(u, {"w": delay}, before, reset)
    change, mu = u - old, {name: params[f"mix_{name}"] for name in names}

    def pullback(dm: dict[str, Array], dlast: Array | None) -> tuple[Array, Params, Array]:
        grads = {f"mix_{name}": sum_rows(dm[name] * change) for name in names}
        dchange = sum(mu[name] * dm[name] for name in names)
        du, _, _, dbefore = back(sum(dm.values()) - dchange, dlast)
        return du + dchange, grads, dbefore

    return ({name: old + mu[name] * change for name in names}, last), pullback
