"""The delta rule and its generalisation on the CPU: threads share the heads and take a few of them at a time.

A chunk of a head that holds NaN or inf is run step by step by the reference.
"""

import math
from typing import Any

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.dplr_chunk import Chunk
from linscan.engines.cpu.dplr_kernels import BLOCK, flush
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.reference.dplr_steps import dplr_attention_step, steps, steps_pullback

__all__ = ["dplr_attention", "dplr_attention_pullback", "dplr_attention_step"]
_CHUNK = 64
_GROUP = 1 << 15  # elements of a chunk's largest array: heads side by side keep BLAS busy and stay in the cache
_GRAIN = 1 << 20  # multiply-adds a thread must get for its hand-over to pay


def dplr_attention(
    q: Array, k: Array, v: Array, a: Array, b: Any, g: Any, S0: Array, *, scale: float, keep: bool, workers: Any
) -> tuple[Array, Array, Any]:
    """See `linscan.ops.dplr`; if `keep`, the states before every chunk and the final one, (heads, chunks + 1, K, V)."""
    lead, (K, V), length = S0.shape[:-2], S0.shape[-2:], v.shape[-2]
    size = _size(length)
    inputs = [_heads(x, lead) for x in _present(a, q, k, b, v, g)]
    S = np.array(S0).reshape(-1, K, V)
    o = np.empty((len(S), length, V), q.dtype)
    states = np.empty((len(S), -(-length // size) + 1 if keep else 0, K, V), S.dtype)

    def body(chunk: Chunk, lo: int, hi: int) -> None:
        mine = [_select(*x, lo, hi) for x in inputs]
        for t in range(0, length, size):
            if keep:
                states[lo:hi, t // size] = S[lo:hi]
            rows, decay = _load(chunk, mine, t, size, g is not None, scale)
            before = S[lo:hi].copy()
            found = chunk.forward(S[lo:hi])
            for i in _not_finite(found):
                found[i, : rows[0].shape[1]], S[lo + i] = steps(**_one(chunk, rows, decay, i), S=before[i])
            o[lo:hi, t : t + size] = found[:, : length - t]

    _over_heads(body, len(S), length, size, K, V, b, g, S.dtype, workers)
    if keep:
        states[:, -1] = S
    return o.reshape(*lead, length, V), S.reshape(S0.shape), states if keep else None


def dplr_attention_pullback(
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Any,
    g: Any,
    states: Array,
    do: Array,
    dS: Array,
    *,
    scale: float,
    workers: Any,
) -> tuple[Any, ...]:
    """The gradients of q, k, v, a, b, g and S0, with the leading axes of dS; None where the argument was."""
    lead, (K, V), length = dS.shape[:-2], dS.shape[-2:], v.shape[-2]
    size, given, compute = _size(length), (a, q, k, b, v, g), dS.dtype
    inputs = [_heads(x, lead) for x in _present(*given)]
    flows, index = _heads(do, lead)
    dS = np.array(dS).reshape(-1, K, V)
    grads = [None if x is None else np.empty((len(dS), *x.shape[-2:]), compute) for x in given]

    def body(chunk: Chunk, lo: int, hi: int) -> None:
        mine, flow = [_select(*x, lo, hi) for x in inputs], np.zeros_like(chunk.v)
        for t in reversed(range(0, length, size)):
            rows, decay = _load(chunk, mine, t, size, g is not None, scale)
            n = rows[0].shape[1]
            flow[:, :n], flow[:, n:] = flows[index[lo:hi], t : t + n], 0
            S, after = states[lo:hi, t // size], dS[lo:hi].copy()
            last = None if g is None else np.einsum("hkv,hkv->hk", states[lo:hi, t // size + 1], after)
            dx, dy, dg, dv = chunk.backward(S, last, flow, dS[lo:hi])
            found = [dx[0], dx[1], dy[0], dy[1] if len(dy) == 2 else None, dv, dg]
            for i in _not_finite(*found):
                dq, dk, dvi, da, db, dgi, dS[lo + i] = steps_pullback(
                    **_one(chunk, rows, decay, i), S=S[i], do=flow[i, :n], dS=after[i]
                )
                for to, x in zip(found, (da, dq, dk, db, dvi, dgi), strict=True):
                    if to is not None and x is not None:
                        to[i, :n] = x
            if scale != 1:
                found[1] *= scale
            for grad, x in zip(grads, found, strict=True):
                if grad is not None and x is not None:
                    same = grad.shape[2] == x.shape[2]
                    grad[lo:hi, t : t + size] = x[:, :n] if same else x[:, :n].sum(axis=2, keepdims=True)

    _over_heads(body, len(dS), length, size, K, V, b, g, compute, workers)
    da, dq, dk, db, dv, dg = (x if x is None else x.reshape(*lead, *x.shape[-2:]) for x in grads)
    return dq, dk, dv, da, db, dg, dS.reshape(*lead, K, V)


def _heads(x: Array, lead: tuple[int, ...]) -> tuple[Array, Array]:
    """`x` as (its own heads, T, …), and for every head of `lead` which of them it is: nothing broadcast is copied."""
    index = np.arange(math.prod(x.shape[:-2])).reshape(x.shape[:-2])
    return x.reshape(index.size, *x.shape[-2:]), np.broadcast_to(index, lead).reshape(-1)


def _size(length: int) -> int:
    """Steps of a chunk: whole blocks."""
    return min(_CHUNK, max(BLOCK, -(-length // BLOCK) * BLOCK))


def _present(*arrays: Any) -> list[Any]:
    return [x for x in arrays if x is not None]


def _over_heads(
    body: Any, count: int, length: int, size: int, K: int, V: int, b: Any, g: Any, dtype: Any, workers: Any
) -> None:
    """Call ``body(buffers, lo, hi)`` for groups of heads."""
    group = max(1, _GROUP // (size * max(K, V)))

    def run(lo: int, hi: int) -> None:
        mode = flush(-1)
        try:
            with np.errstate(all="ignore"):
                for at in range(lo, hi, group):
                    end = min(at + group, hi)
                    body(Chunk(end - at, size, K, V, 1 if b is None else 2, g is not None, dtype), at, end)
        finally:
            flush(mode)

    if length and count:
        parallel_for(run, count, grain=1 + _GRAIN // max(1, length * K * V), workers=workers)


def _select(x: Array, index: Array, lo: int, hi: int) -> Array:
    """What heads `lo` to `hi` have of `x`: a view where each has its own."""
    own = slice(index[lo], index[lo] + hi - lo)
    return x[own] if np.array_equal(index[lo:hi], np.arange(own.start, own.stop)) else x[index[lo:hi]]


def _load(chunk: Chunk, mine: list[Any], t: int, size: int, gated: bool, scale: float) -> tuple[Any, Any]:
    """Fill `chunk` with the steps from `t` on; what it was filled with, and their g."""
    rows = [x[:, t : t + size] for x in mine]
    decay = rows.pop().astype(chunk.x.dtype, copy=False) if gated else None
    chunk.load(rows, decay, scale)
    return rows, decay


def _not_finite(*found: Any) -> Any:
    """Heads in whose results there is NaN or inf."""
    sums = [x.reshape(len(x), -1) @ np.ones(x[0].size, x.dtype) for x in found if x is not None]
    return np.flatnonzero(~np.isfinite(sum(sums)))  # a sum that overflows costs time, no more


def _one(chunk: Chunk, rows: list[Any], decay: Any, i: int) -> dict[str, Any]:
    """q, k, v, a, b and g of one head of a chunk, without what pads it."""
    n = rows[0].shape[1]
    g = np.zeros((n, 1), chunk.x.dtype) if decay is None else decay[i]
    b = chunk.y[1, i, :n] if len(chunk.y) == 2 else None
    q, k, v, a = chunk.x[1, i, :n], chunk.y[0, i, :n], chunk.v[i, :n], chunk.x[0, i, :n]
    return {"q": q, "k": k, "v": v, "a": a, "b": b, "g": g}
