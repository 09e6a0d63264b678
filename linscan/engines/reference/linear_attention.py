"""Linear attention in chunks, in array operations; and step by step, for chunks no matrix product can do exactly.

Inside a chunk ``O = (Q e^W) S + A V`` with the decayed triangle ``A[t, s] = q[t]ᵀ diag(e^(g[s+1] + … + g[t])) k[s]``,
and ``S' = e^W[end] S + (K e^(W[end] - W))ᵀ V``, W being sums of g from the chunk's beginning. Decays are (…, T, 1) or
(…, T, K) alike.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype, host_any, namespace, real_dtype
from linscan.engines.reference import decayed_product

_CHUNK = 32


def linear_attention(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None,
    S0: Array | None,
    *,
    lead: tuple[int, ...],
    scale: float,
    keep: bool,
    precision: Any,
    workers: Any,
) -> tuple[Array, Array, list[Array] | None]:
    """See `linscan.ops.linear_attention`; also returns, if `keep`, the states before every chunk."""
    xp, dtype, compute = namespace(q), q.dtype, accum_dtype(q.dtype)
    q, k, v, g, S = _broadcast(q, k, v, g, S0, lead)
    q = q * compute.type(scale)
    o, states = xp.empty(v.shape, dtype), []
    for at in _chunks(q.shape[-2]):
        if keep:
            states.append(S)
        part, S = _apply(chunk, steps, S, *(x[..., at, :] for x in (q, k, v, g)))
        o[..., at, :] = part
    return o, S.copy() if S0 is not None and S.base is not None else S, states if keep else None


def linear_attention_pullback(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None,
    S0: Array | None,
    states: list[Array],
    do: Array,
    dS: Array,
    *,
    lead: tuple[int, ...],
    scale: float,
    workers: Any,
) -> tuple[Array | None, ...]:
    """The gradients of q, k, v, g and S0, not summed over what broadcasts."""
    xp, compute, given = namespace(q), accum_dtype(q.dtype), g
    q, k, v, g, _ = (xp.conj(x) for x in _broadcast(q, k, v, g, S0, lead))
    q, do = q * compute.type(scale), do.astype(compute, copy=False)
    grads = [xp.empty(x.shape, x.dtype) for x in (q, k, v, g)]
    for at, S in reversed(list(zip(_chunks(q.shape[-2]), states, strict=True))):
        parts = _apply(chunk_pullback, steps_pullback, xp.conj(S), *(x[..., at, :] for x in (q, k, v, g, do)), dS)
        for grad, part in zip(grads, parts, strict=False):
            grad[..., at, :] = part
        dS = parts[-1]
    grads[0] *= compute.type(scale)
    return *grads[:3], None if given is None else grads[3], None if S0 is None else dS


def linear_attention_step(
    q: Array, k: Array, v: Array, g: Array | None, S: Array, *, lead: tuple[int, ...], scale: float, workers: Any
) -> tuple[Array, Array]:
    """One step, time being an axis of length 1: the output (…, V), and the state after it."""
    dtype, compute = q.dtype, accum_dtype(q.dtype)
    q, k, v = (x.astype(compute, copy=False) for x in (q, k, v))
    new = (S if g is None else _decayed(g[..., 0, :], S)) + k[..., 0, :, None] * v[..., 0, None, :]
    o = namespace(q).matmul(q, new)[..., 0, :]
    return (o if scale == 1 else scale * o).astype(dtype, copy=False), new


def _broadcast(q: Array, k: Array, v: Array, g: Array | None, S0: Array | None, lead: tuple[int, ...]) -> list[Array]:
    """Everything with all leading axes, in the arithmetic's dtype; no decay is a decay of zero."""
    xp, compute = namespace(q), accum_dtype(q.dtype)
    real = real_dtype(compute)
    g = xp.zeros((q.shape[-2], 1), real) if g is None else g
    S = xp.zeros((k.shape[-1], v.shape[-1]), compute) if S0 is None else S0
    parts = [*(x.astype(compute, copy=False) for x in (q, k, v)), g, S]
    return [xp.broadcast_to(x, lead + x.shape[-2:]) for x in parts]


def _chunks(length: int) -> list[slice]:
    return [slice(lo, min(lo + _CHUNK, length)) for lo in range(0, length, _CHUNK)]


def chunk(S: Array, q: Array, k: Array, v: Array, g: Array) -> tuple[Array, Array]:
    """One chunk by matrix products: its outputs and the state after it."""
    xp = namespace(q)
    before, after = decayed_product.edges(g)
    total = xp.exp(g.sum(axis=-2))[..., None]
    o = (q * before) @ S + decayed_product.product(q, k, g) @ v
    return o, total * S + xp.swapaxes(k * after, -1, -2) @ v


def chunk_pullback(S: Array, q: Array, k: Array, v: Array, g: Array, do: Array, dS: Array) -> tuple[Array, ...]:
    """The pullback of `chunk`; all but `do` and `dS` are conjugated already."""
    xp = namespace(q)
    before, after = decayed_product.edges(g)
    total = xp.exp(g.sum(axis=-2))[..., None]
    A, dA = decayed_product.product(q, k, g), xp.tril(do @ xp.swapaxes(v, -1, -2))
    dv = xp.swapaxes(A, -1, -2) @ do + (k * after) @ dS
    dq_far, dk_far = before * (do @ xp.swapaxes(S, -1, -2)), after * (v @ xp.swapaxes(dS, -1, -2))
    dq, dk, dg = decayed_product.product_pullback(q, k, g, dA)
    # g[t] also decays what came in with S and is read from t on, what was written before t and leaves with the state,
    # and what passes through.
    read, written = (xp.real(x * dx) for x, dx in ((q, dq_far), (k, dk_far)))
    passed = xp.real(total * (S * dS)).sum(axis=-1)[..., None, :]
    far = decayed_product.from_here(read) + decayed_product.until_here(written) + passed
    dg = dg + (far if g.shape[-1] > 1 else far.sum(axis=-1, keepdims=True))
    return dq + dq_far, dk + dk_far, dv, dg, total * dS + xp.swapaxes(q * before, -1, -2) @ do


def _apply(by_products: Callable[..., Any], by_steps: Callable[..., Any], S: Array, *arrays: Array) -> Any:
    """`by_products` for all heads, and `by_steps` for those it would not do exactly.

    NaN and inf would reach earlier steps of their chunk through the zeros above the diagonal, and factors above 1 could
    overflow before they meet those below. Looking would synchronise on the GPU, which does without.
    """
    g = arrays[3]
    xp = namespace(g)
    if not host_any(g, otherwise=False, test=lambda g: ~(g <= 0)) and _all_finite(S, *arrays[:3], *arrays[4:]):
        return by_products(S, *arrays)
    with np.errstate(all="ignore"):
        done = by_products(S, *arrays)
        limit = np.log(np.finfo(g.dtype).max) / 2
        bad = ~(xp.where(g > 0, g, 0).sum(axis=-2).max(axis=-1, initial=0) < limit) | xp.isnan(g).any(axis=(-2, -1))
        for x in (S, *arrays[:3], *arrays[4:]):
            bad = bad | ~xp.isfinite(x).all(axis=(-2, -1))
        for y, exact in zip(done, by_steps(*(x[bad] for x in (S, *arrays))), strict=True):
            y[bad] = exact
    return done


def _all_finite(*arrays: Array) -> bool:
    return not any(host_any(x, lambda x: ~np.isfinite(x), otherwise=False) for x in arrays)


def steps(S: Array, q: Array, k: Array, v: Array, g: Array) -> tuple[Array, Array]:
    """The definition: one step after another."""
    xp = namespace(q)
    o = xp.empty(v.shape, v.dtype)
    for t in range(q.shape[-2]):
        S = _decayed(g[..., t, :], S) + k[..., t, :, None] * v[..., t, None, :]
        o[..., t, :] = (q[..., t, None, :] @ S)[..., 0, :]
    return o, S


def steps_pullback(S: Array, q: Array, k: Array, v: Array, g: Array, do: Array, dS: Array) -> tuple[Array, ...]:
    """The pullback of `steps`; all but `do` and `dS` are conjugated already."""
    xp = namespace(q)
    before, length = [S], q.shape[-2]
    for t in range(length):
        before.append(_decayed(g[..., t, :], before[-1]) + k[..., t, :, None] * v[..., t, None, :])
    dq, dk, dv, dg = (xp.empty(x.shape, x.dtype) for x in (q, k, v, g))
    for t in reversed(range(length)):
        dq[..., t, :] = (before[t + 1] @ do[..., t, :, None])[..., 0]
        dS = dS + q[..., t, :, None] * do[..., t, None, :]
        dk[..., t, :] = (dS @ v[..., t, :, None])[..., 0]
        dv[..., t, :] = (k[..., t, None, :] @ dS)[..., 0, :]
        dS = _decayed(g[..., t, :], dS)
        slope = xp.where(g[..., t, :] == -np.inf, 0, xp.real(before[t] * dS).sum(axis=-1))
        dg[..., t, :] = slope if g.shape[-1] > 1 else slope.sum(axis=-1, keepdims=True)
    return dq, dk, dv, dg, dS


def _decayed(g: Array, S: Array) -> Array:
    """``diag(e^g) S``, where -inf forgets even what is not finite."""
    xp = namespace(S)
    factor = xp.exp(g)[..., None]
    return xp.where(factor == 0, S.dtype.type(0), factor * S)
