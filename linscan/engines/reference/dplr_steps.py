"""The recurrence of `dplr_attention` step by step, and its adjoint: the definition, and the way past NaN and inf.

    S[t] = diag(e[t]) S[t-1] + b[t] (a[t]ᵀ S[t-1]) + k[t] v[t]ᵀ,   o[t] = S[t]ᵀ q[t],   e = exp(g)

Without b the step writes along k alone, ``S[t] = diag(e[t]) S[t-1] + k[t] (v[t] + S[t-1]ᵀ a[t])ᵀ``. A key channel with
e = 0 and a = 0 neither stays nor is read: what it held is forgotten, NaN and inf included.
"""

from typing import Any

from linscan._arrays import Array, namespace


def steps(q: Array, k: Array, v: Array, a: Array, b: Array | None, g: Array, S: Array) -> tuple[Array, Array]:
    """The outputs (…, T, V) and the last state; `g` is (…, T, K) or (…, T, 1), `S` the state before the first step."""
    xp = namespace(v)
    outputs = []
    for t in range(v.shape[-2]):
        S, _, _ = _step(xp, k, v, a, b, g, S, t)
        outputs.append(_read(S, q[..., t, :]))
    return xp.stack(outputs, axis=-2), S


def steps_pullback(
    q: Array, k: Array, v: Array, a: Array, b: Array | None, g: Array, S: Array, do: Array, dS: Array
) -> tuple[Any, ...]:
    """The gradients of q, k, v, a, b, g and of `S`, the state before the first step; arguments are conjugated already.

    They follow from the step's own differential, with dS taken over every path: dS += q doᵀ; dq = S do;
    du = dSᵀ b; da = S₋ du; db = dS u; dk = dS v; dv = dSᵀ k; dg = e ∘ Σ_v dS ∘ S₋; dS₋ = e ∘ dS + a duᵀ.
    """
    xp, length, trail = namespace(v), v.shape[-2], []
    for t in range(length):
        S, before, written = _step(xp, k, v, a, b, g, S, t)
        trail.append((S, before, written))
    grads: list[tuple[Any, ...]] = []
    for t in reversed(range(length)):
        after, before, u = trail[t]
        dS = dS + q[..., t, :, None] * do[..., t, None, :]
        dv = _read(dS, k[..., t, :])
        du = dv if b is None else _read(dS, b[..., t, :])
        dk = _write(dS, u if b is None else v[..., t, :])
        db = None if b is None else _write(dS, u)
        stay = xp.exp(g[..., t, :])[..., None]
        dg = (xp.where(stay == 0, 0, stay * dS) * before).sum(axis=-1)
        grads.append((_write(after, do[..., t, :]), dk, dv, _write(before, du), db, dg))
        lost = _lost(xp, a, g, t)
        dS = xp.where(lost, 0, xp.where(stay == 0, 0, stay * dS) + a[..., t, :, None] * du[..., None, :])
    rows: list[Any] = [None if x[0] is None else xp.stack(x[::-1], axis=-2) for x in zip(*grads, strict=True)]
    if g.shape[-1] == 1:
        rows[-1] = rows[-1].sum(axis=-1, keepdims=True)
    return *rows, dS


def dplr_attention_step(
    q: Array, k: Array, v: Array, a: Array, b: Array | None, g: Array | None, S: Array, *, scale: float, workers: Any
) -> tuple[Array, Array]:
    """The output (…, V) of the last of these few steps, and the state after it."""
    xp, dtype = namespace(v), q.dtype
    q, k, v, a, b = (x if x is None else x.astype(S.dtype, copy=False) for x in (q, k, v, a, b))
    g = xp.zeros((v.shape[-2], 1), v.real.dtype) if g is None else g
    for t in range(v.shape[-2]):
        S, _, _ = _step(xp, k, v, a, b, g, S, t)
    o = (q[..., -1, None, :] @ S)[..., 0, :]
    return (scale * o).astype(dtype, copy=False), S


def _step(xp: Any, k: Array, v: Array, a: Array, b: Array | None, g: Array, S: Array, t: int) -> tuple[Any, ...]:
    """The new state, the old one without what is forgotten, and what goes along b (along k where there is no b)."""
    before = xp.where(_lost(xp, a, g, t), 0, S)
    stay = xp.exp(g[..., t, :])[..., None]
    u = _read(before, a[..., t, :])
    if b is None:
        u = u + v[..., t, :]
    new = xp.where(stay == 0, 0, stay * before) + k[..., t, :, None] * (u if b is None else v[..., t, :])[..., None, :]
    return (new if b is None else new + b[..., t, :, None] * u[..., None, :]), before, u


def _lost(xp: Any, a: Array, g: Array, t: int) -> Array:
    return ((a[..., t, :] == 0) & xp.isneginf(g[..., t, :]))[..., None]


def _read(S: Array, x: Array) -> Array:
    return (S * x[..., :, None]).sum(axis=-2)


def _write(S: Array, y: Array) -> Array:
    return (S * y[..., None, :]).sum(axis=-1)
