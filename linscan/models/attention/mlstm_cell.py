"""The matrix memory of xLSTM, by `linscan.linear_attention`.

    C[t] = σ(f̃) C[t-1] + i k vᵀ,  n[t] = σ(f̃) n[t-1] + i k,  h = Cᵀq / max(|nᵀq|, 1),  q scaled by 1/sqrt(K)

With i = e^ĩ, C and n are kept as multiples of e^m of a running maximum, so that no exponential grows:

    m[t] = max(log σ(f̃) + m[t-1], ĩ),   decay e^(log σ(f̃) + m[t-1] - m[t]) ≤ 1,   input e^(ĩ - m[t]) k (v, 1)ᵀ ≤ 1,

n being one more column of C, and the 1 in h becomes e^-m. With i = σ(ĩ) there is neither m nor n, and h = Cᵀq.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import linear_attention_vjp, max_scan_vjp
from linscan._arrays import Array, namespace
from linscan.models.layer import Params, State
from linscan.ops.activation import sigmoid, softplus

Cell = tuple[tuple[Array, Params], Callable[..., tuple[Any, ...]]]


def exponential_vjp(q: Array, k: Array, v: Array, i: Array, f: Array, state: State, reset: Array | None) -> Cell:
    """Outputs (…, H, T, V), the state ``{"C": (…, H, K, V + 1), "m": (…, H)}``, and the pullback of both.

    q, k (…, H, T, K) and v (…, H, T, V); i and f, (…, H, T), are the gates before their functions; `reset` is (…, 1, T)
    or None, `state` a dict or None.
    """
    xp, T = namespace(q), q.shape[-2]
    minus = xp.asarray(-xp.inf, i.dtype)
    C0, m0 = (state["C"], state["m"]) if state else (None, xp.broadcast_to(minus, i.shape[:-1]))
    log_f = -softplus(-f)
    m, back1 = max_scan_vjp(log_f, i, m0, axis=-1, reset=reset)
    earlier = xp.concatenate([m0[..., None], m[..., :-1]], -1)[..., :T]
    g = log_f + (earlier if reset is None else xp.where(reset, minus, earlier)) - m
    w = xp.exp(i - m)[..., None]
    ones = xp.concatenate([v, xp.ones_like(v[..., :1])], -1)
    back2: Any
    (o, C), back2 = linear_attention_vjp(q, w * k, ones, g, C0, scale=q.shape[-1] ** -0.5)
    num, den = o[..., :-1], o[..., -1:]
    most = float(np.log(np.finfo(m.dtype).max)) / 2  # a larger floor makes h 0 all the same
    floor = xp.exp(xp.minimum(-m, most))[..., None]
    low = abs(den) < floor
    size = xp.where(low, floor, abs(den))
    h = num / size

    def pullback(dh: Array, dstate: Params | None) -> tuple[Any, ...]:
        dsize = -(dh * h).sum(-1, keepdims=True) / size
        dden = xp.where(low, 0, dsize * xp.sign(den))
        dq, dwk, dv, dg, dC0 = back2(xp.concatenate([dh / size, dden], -1), dstate["C"] if dstate else None)
        dlog_w = (w * dwk * k).sum(-1)  # w = e^(i - m);  g = log f + m[t-1] - m, whose dg is 0 where m[t-1] is -inf
        dm = xp.where(low, -dsize * floor, 0)[..., 0] - dlog_w - dg
        dm[..., :-1] += dg[..., 1:]
        if dstate and T:
            dm[..., -1] += dstate["m"]
        dlog_f, di, dm0 = back1(dm)
        df = (dlog_f + dg) * sigmoid(-f)
        dm0 = dm0 + dg[..., 0] if T else dm0 if dstate is None else dstate["m"]
        return dq, w * dwk, dv[..., :-1], dlog_w + di, df, {"C": dC0, "m": dm0} if state else None

    return (h, {"C": C, "m": m[..., -1] if T else m0}), pullback


def sigmoid_vjp(q: Array, k: Array, v: Array, i: Array, f: Array, state: State, reset: Array | None) -> Cell:
    """The same with input gates σ(ĩ); the state is ``{"C": (…, H, K, V)}``."""
    log_f, w = -softplus(-f), sigmoid(i)[..., None]
    C0 = state["C"] if state else None
    back: Any
    (h, C), back = linear_attention_vjp(q, w * k, v, log_f, C0, scale=q.shape[-1] ** -0.5, reset=reset)

    def pullback(dh: Array, dstate: Params | None) -> tuple[Any, ...]:
        dq, dwk, dv, dlog_f, dC0 = back(dh, dstate["C"] if dstate else None)
        di = (dwk * k * w * (1 - w)).sum(-1)
        return dq, w * dwk, dv, di, dlog_f * sigmoid(-f), {"C": dC0} if state else None

    return (h, {"C": C}), pullback
