"""Linear attention on the CPU: one head after another, in chunks, on as many threads as there are heads.

A chunk that holds NaN or inf, or whose decays could leave the dtype's range, is run step by step by the reference.
"""

import math

import numpy as np

from linscan._arrays import accum_dtype, real_dtype
from linscan.engines.cpu.chunks import CHUNK, decay_tables, heads, padded
from linscan.engines.cpu.linear_attention_back import backward
from linscan.engines.cpu.linear_attention_forward import forward
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.reference.linear_attention import linear_attention_step, steps, steps_pullback

__all__ = ["linear_attention", "linear_attention_pullback", "linear_attention_step"]
_GRAIN = 1 << 20  # multiply-adds a thread must get for its hand-over to pay


def linear_attention(q, k, v, g, S0, *, lead, scale, keep, precision, workers):
    """See `linscan.ops.linear_attention`; also returns, if `keep`, the states before every chunk."""
    (length, K), V, dtype, compute = q.shape[-2:], v.shape[-1], q.dtype, accum_dtype(q.dtype)
    inputs = _inputs(q, k, v, g, S0, lead)
    count = math.prod(lead)
    o = np.empty((count, length, V), compute)
    S = np.zeros((count, padded(K), padded(V)), compute)
    states = np.empty((count, -(-length // CHUNK) if keep else 0, K, V), compute)

    def body(lo, hi):
        work, tables = buffers(inputs)
        for h in range(lo, hi):
            *arrays, g, first = (x[index[h]] for x, index in inputs)
            S[h, :K, :V] = first
            _head(tuple(arrays), g, S[h], o[h], states[h], scale, work, tables)

    parallel_for(body, count, grain=_heads_of(length, K, V), workers=workers)
    final = np.ascontiguousarray(S[:, :K, :V]).reshape(*lead, K, V)
    return o.reshape(*lead, length, V).astype(dtype, copy=False), final, states if keep else None


def linear_attention_pullback(q, k, v, g, S0, states, do, dS, *, lead, scale, workers):
    """See `linscan.ops.linear_attention_vjp`: gradients of q, k, v, g and S0, not summed over what broadcasts."""
    (length, K), V, compute = q.shape[-2:], v.shape[-1], accum_dtype(q.dtype)
    inputs = _inputs(*(x.conj() for x in (q, k, v)), g, None, lead)
    channels, real, count = inputs[3][0].shape[-1], inputs[3][0].dtype, math.prod(lead)
    do = np.ascontiguousarray(do, compute).reshape(count, length, V)
    flow = np.zeros((count, padded(K), padded(V)), compute)
    flow[:, :K, :V] = dS.reshape(count, K, V)
    shapes = (length, K, compute), (length, K, compute), (length, V, compute), (length, channels, real)
    grads = [np.empty((count, n, width), dtype) for n, width, dtype in shapes]

    def body(lo, hi):
        work, tables = buffers_back(inputs)
        for h in range(lo, hi):
            *arrays, g, _ = (x[index[h]] for x, index in inputs)
            mine = tuple(x[h] for x in grads)
            _head_back((*arrays, do[h]), g, states[h].conj(), flow[h], mine, scale, work, tables)

    parallel_for(body, count, grain=_heads_of(length, K, V), workers=workers)
    dq, dk, dv, dg = (x.reshape(*lead, *x.shape[1:]) for x in grads)
    return dq, dk, dv, None if g is None else dg, None if S0 is None else flow[:, :K, :V].reshape(*lead, K, V)


def _heads_of(length, K, V):
    """Heads a thread must get."""
    return 1 + _GRAIN // max(1, length * K * V)


def _inputs(q, k, v, g, S0, lead):
    """q, k, v, g and S0 as their own heads in the arithmetic's dtype, each with the index of every head's."""
    compute = accum_dtype(q.dtype)
    g = np.zeros((q.shape[-2], 1), real_dtype(compute)) if g is None else g
    S0 = np.zeros((q.shape[-1], v.shape[-1]), compute) if S0 is None else S0
    return [heads(x, lead) for x in (*(x.astype(compute, copy=False) for x in (q, k, v)), g, S0)]


def buffers(inputs):
    """What one thread's kernels work in: arrays of the arithmetic's dtype, and of the decays'."""
    (q, _), _, (v, _), (g, _), _ = inputs
    wide, tall, channels = padded(q.shape[-1]), padded(v.shape[-1]), 1 if g.shape[-1] == 1 else padded(q.shape[-1])
    shapes = (CHUNK, wide), (CHUNK, wide), (CHUNK, tall), (CHUNK, tall), (wide, CHUNK), (CHUNK, CHUNK), (1, tall)
    tables = *[(CHUNK, channels)] * 3, (CHUNK if channels == 1 else 0, CHUNK), (3, max(CHUNK, wide))
    return tuple(np.zeros(x, q.dtype) for x in shapes), tuple(np.ones(x, g.dtype) for x in tables)


def _head(arrays, g, S, o, states, scale, work, tables):
    """All chunks of one head; `S` (padded), `o` and `states` are filled."""
    q, k, v = arrays
    decays, units = decay_tables(g, len(q)), np.array([scale, 1, 0], q.dtype)
    at, inner = 0, S[: k.shape[1], : v.shape[1]]
    while (at := forward(arrays, decays, S, o, states, units, work, tables, at)) < len(decays[2]):
        part = slice(at * CHUNK, (at + 1) * CHUNK)
        if len(states):
            states[at] = inner
        with np.errstate(all="ignore"):
            o[part], inner[...] = steps(inner, q[part] * units[0], k[part], v[part], g[part])
        at += 1


def buffers_back(inputs):
    """The same for the pullback."""
    (q, _), _, (v, _), (g, _), _ = inputs
    wide, tall, channels = padded(q.shape[-1]), padded(v.shape[-1]), 1 if g.shape[-1] == 1 else padded(q.shape[-1])
    shapes = *[(CHUNK, wide)] * 7, (wide, CHUNK), *[(CHUNK, tall)] * 3, (tall, CHUNK), (wide, tall)
    shapes = *shapes, (tall, wide), (tall, wide), (CHUNK, CHUNK), (CHUNK, CHUNK), (1, max(wide, tall))
    tables = *[(CHUNK, channels)] * 3, (CHUNK if channels == 1 else 0, CHUNK), (3, max(CHUNK, wide))
    tables = *tables, *[(CHUNK, channels)] * 2
    return tuple(np.zeros(x, q.dtype) for x in shapes), tuple(np.ones(x, g.dtype) for x in tables)


def _head_back(arrays, g, states, dS, grads, scale, work, tables):
    """All chunks of one head, the last one first; `dS` (padded) and `grads` are filled."""
    q, k, v, do = arrays
    decays, units = decay_tables(g, len(q)), np.array([scale, 1, 0], q.dtype)
    at, inner = len(states) - 1, dS[: k.shape[1], : v.shape[1]]
    while (at := backward(arrays, decays, states, dS, grads, units, work, tables, at)) >= 0:
        part = slice(at * CHUNK, (at + 1) * CHUNK)
        with np.errstate(all="ignore"):
            steps = steps_pullback(states[at], q[part] * units[0], k[part], v[part], g[part], do[part], inner)
        for grad, x in zip(grads, steps, strict=False):
            grad[part] = x
        grads[0][part] *= units[0]
        inner[...] = steps[-1]
        at -= 1
