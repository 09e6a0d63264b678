"""Sliding-window attention on the CPU: blocks of queries against tiles of keys, as stacks of small matrix products.

All tiles are equally large, so that what a row's products round depends on its own sizes only; and small, so that the
BLAS under NumPy starts no threads of its own: threads here take chunks of a few blocks. A product cannot leave out a
key that is not finite, so rows with such numbers go to the reference.
"""

from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu.local_attention_tiles import Chunk, Plan, plan_of
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.reference import local_attention as reference

_GRAIN = 1 << 20  # multiply-adds a thread must get for its hand-over to pay


def local_attention(q, k, v, g, own, seen, *, window, causal, scale, workers):
    """See `linscan.ops.local_attention.local_attention`; arguments as in the reference."""
    o, total = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype), np.empty(q.shape[:-1], accum_dtype(q.dtype))
    plan = plan_of(q, k, v, window, causal)
    places, others = _rows(q, k, v, g)
    options = {"window": window, "causal": causal, "scale": scale, "workers": workers}
    for at in others:
        o[at], total[at] = reference.local_attention(*_at(at, q, k, v, g, own, seen), **options)
    chunks = -(-q.shape[-2] // (plan.block * plan.blocks))

    def body(lo: int, hi: int) -> None:
        for unit in range(lo, hi):
            row, chunk = divmod(unit, chunks)
            at = places[row]
            work = Chunk(plan, causal, scale, chunk, *_at(at, q, k, v, g, own, seen))
            _forward(work, o[at], total[at])

    parallel_for(body, len(places) * chunks, grain=_grain(plan, q, v), workers=workers)
    return o, total


def local_attention_pullback(q, k, v, g, own, seen, o, total, do, *, window, causal, scale, workers):
    """See `linscan.ops.local_attention.local_attention_vjp`; arguments as in the reference."""
    compute = accum_dtype(q.dtype)
    dq, dk, dv = (np.zeros(x.shape, compute) for x in (q, k, v))
    dg = None if g is None else np.zeros(g.shape, np.float64)
    plan = plan_of(q, k, v, window, causal)
    places, others = _rows(q, k, v, g, do, np.where(total == np.inf, 0, total)[..., None])
    options = {"window": window, "causal": causal, "scale": scale, "workers": workers}
    for at in others:
        grads = reference.local_attention_pullback(*_at(at, q, k, v, g, own, seen, o, total, do), **options)
        for whole, x in zip((dq, dk, dv, dg), grads, strict=True):
            if whole is not None:
                whole[at] = x
    chunks = -(-q.shape[-2] // (plan.block * plan.blocks))
    units = -(-chunks // plan.unit)
    parts = [()] * (len(places) * units)

    def body(lo: int, hi: int) -> None:
        for i in range(lo, hi):
            row, unit = divmod(i, units)
            mine = range(unit * plan.unit, min((unit + 1) * plan.unit, chunks))
            given = _at(places[row], q, k, v, g, own, seen)
            parts[i] = _backward(plan, causal, scale, mine, given, *_at(places[row], o, total, do, dq))

    parallel_for(body, len(parts), grain=max(1, _grain(plan, q, v) // plan.unit), workers=workers)
    for i, (start, stop, *grads) in enumerate(parts):  # in one order, whoever made them
        for whole, part in zip((dk, dv, dg), grads, strict=True):
            if whole is not None:
                lo = max(start, 0)
                whole[places[i // units]][lo:stop] += part[lo - start : stop - start]
    return tuple(x if x is None else x.astype(q.dtype, copy=False) for x in (dq, dk, dv, dg))


def _grain(plan: Plan, q: Array, v: Array) -> int:
    return max(1, _GRAIN // (plan.blocks * plan.tiles * plan.block**2 * max(1, q.shape[-1] + v.shape[-1])))


def _rows(q: Array, *others: Array | None) -> tuple[list[Any], list[Any]]:
    """The rows, by their leading indices: those with finite numbers, and the rest."""
    with np.errstate(all="ignore"):
        given = [x for x in (q, *others) if x is not None]
        sums = [x.sum(tuple(range(q.ndim - 2, x.ndim)), dtype=np.float64) for x in given]
        good = np.isfinite(sum(sums[1:], sums[0]))
    places = list(np.ndindex(q.shape[:-2]))
    return [at for at in places if good[at]], [at for at in places if not good[at]]


def _at(at: tuple[int, ...], *arrays: Array | None) -> list[Any]:
    return [None if x is None else x[at] for x in arrays]


def _forward(work: Chunk, o: Array, total: Array) -> None:
    with np.errstate(all="ignore"):
        s = work.scores()
        top = s.max(0).max(-1)
        top[top == -np.inf] = 0
        s -= top[..., None]
        np.exp(s, out=s)
        weight = s.sum(0).sum(-1)
        y, part = np.zeros((2, *weight.shape, o.shape[-1]), work.compute)
        for j in range(len(s)):
            y += np.matmul(s[j], work.at(work.v, j), out=part)
        empty = weight == 0
        y /= np.where(empty, 1, weight)[..., None]
        lasting = np.where(empty, np.inf, top + np.log(weight))
    rows = slice(work.start, work.stop)
    o[rows] = y.reshape(lasting.size, o.shape[-1])[: work.stop - work.start]
    total[rows] = lasting.reshape(-1)[: work.stop - work.start]


def _backward(plan: Plan, causal, scale, chunks, given, o, total, do, dq):
    """The gradients of the keys, values and gates that these chunks see, and where they begin and end."""
    parts: list[Any] = []
    for chunk in chunks:
        work = Chunk(plan, causal, scale, chunk, *given)
        if not parts:
            base = work.first
            size = (work.count + plan.blocks * (len(chunks) - 1)) * plan.block
            parts = [np.zeros((size, x.shape[-1]), work.compute) for x in given[1:3]]
            parts.append(None if given[3] is None else np.zeros(size))
        span = slice(work.first - base, work.first - base + work.count * plan.block)
        views = [None if x is None else x[span].reshape(work.count, plan.block, *x.shape[1:]) for x in parts]
        with np.errstate(all="ignore"):
            dx = _chunk_back(work, work.queries(do), work.queries(o), work.queries(total, np.inf), *views)
        dq[work.start : work.stop] = dx.reshape(work.blocks * plan.block, dq.shape[-1])[: work.stop - work.start]
    return base, min(base + size, len(given[1])), *parts


def _chunk_back(work: Chunk, do, o, total, dk, dv, dg) -> Array:
    """Add to `dk`, `dv`, `dg`, laid out as tiles; returns the gradient of the queries."""
    p, mean = work.scores(), (do * o).sum(-1)[..., None]
    p -= total[..., None]
    np.exp(p, out=p)
    dq, turned, slope = np.zeros_like(work.q), np.ascontiguousarray(work.v.swapaxes(1, 2)), np.empty_like(p[0])
    across = np.zeros((work.count, work.plan.block))  # what crosses from one step to the next, of the pairs here
    for j in range(len(p)):
        np.matmul(do, work.at(turned, j), out=slope)
        slope -= mean
        slope *= p[j]
        dq += np.matmul(slope, work.at(work.k, j))
        dk[j : j + work.blocks] += np.matmul(slope.swapaxes(1, 2), work.q)
        dv[j : j + work.blocks] += np.matmul(p[j].swapaxes(1, 2), do)
        if dg is not None:
            signed = slope * work.sign(j)
            across[j : j + work.blocks] += signed.sum(1)
            work.at(across, work.plan.before)[...] -= signed.sum(2)
    if dg is not None:  # a pair enters at its earlier step and leaves at its later one
        flow = np.cumsum(across.ravel())
        dg.reshape(-1)[1:] += flow[:-1]
    dq *= work.compute.type(work.scale)
    return dq
