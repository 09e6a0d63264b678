"""The delta rule and its generalisation on the CPU: one head after another, in chunks, on as many threads as heads.

A chunk that holds NaN or inf, or whose decays could leave the dtype's range, is run step by step by the reference.
"""

import math
from typing import Any

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.chunks import CHUNK, decay_tables, heads, padded
from linscan.engines.cpu.dplr_back import backward
from linscan.engines.cpu.dplr_forward import ROOM, forward
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.reference.dplr_steps import dplr_attention_step, steps, steps_pullback

__all__ = ["dplr_attention", "dplr_attention_pullback", "dplr_attention_step"]
_GRAIN = 1 << 20  # multiply-adds a thread must get for its hand-over to pay


def dplr_attention(
    q: Array, k: Array, v: Array, a: Array, b: Any, g: Any, S0: Array, *, scale: float, keep: bool, workers: Any
) -> tuple[Array, Array, Any]:
    """See `linscan.ops.dplr`; if `keep`, the states before every chunk, (heads, chunks, K, V)."""
    lead, (K, V), length, compute = S0.shape[:-2], S0.shape[-2:], v.shape[-2], S0.dtype
    inputs, count = _inputs(q, k, v, a, b, g, S0), math.prod(lead)
    S = np.zeros((count, padded(K), padded(V)), compute)
    S[:, :K, :V] = S0.reshape(count, K, V)
    o = np.empty((count, length, V), compute)
    states = np.empty((count, -(-length // CHUNK) if keep else 0, K, V), compute)

    def body(lo: int, hi: int) -> None:
        work = _buffers(K, V, b is not None, inputs[-1][0])
        for h in range(lo, hi):
            _head(_one(inputs, h), S[h], o[h], states[h], scale, work)

    parallel_for(body, count, grain=1 + _GRAIN // max(1, length * K * V), workers=workers)
    final = np.ascontiguousarray(S[:, :K, :V]).reshape(*lead, K, V)
    return o.reshape(*lead, length, V).astype(q.dtype, copy=False), final, states if keep else None


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
    lead, (K, V), length, compute = dS.shape[:-2], dS.shape[-2:], v.shape[-2], dS.dtype
    inputs, count = _inputs(q, k, v, a, b, g, dS), math.prod(lead)
    flow = np.zeros((count, padded(K), padded(V)), compute)
    flow[:, :K, :V] = dS.reshape(count, K, V)
    do = np.ascontiguousarray(do, compute).reshape(count, length, V)
    widths = K, K, K, 0 if b is None else K, V, inputs[-1][0].shape[-1]
    grads = [np.empty((count, length if width else 0, width), compute) for width in widths]

    def body(lo: int, hi: int) -> None:
        work = _buffers_back(K, V, b is not None, inputs[-1][0])
        for h in range(lo, hi):
            _head_back((*_one(inputs, h), do[h]), states[h], flow[h], tuple(x[h] for x in grads), scale, work)

    parallel_for(body, count, grain=1 + _GRAIN // max(1, length * K * V), workers=workers)
    da, dq, dk, db, dv, dg = (x.reshape(*lead, *x.shape[1:]) for x in grads)
    return dq, dk, dv, da, None if b is None else db, None if g is None else dg, flow[:, :K, :V].reshape(*lead, K, V)


def _inputs(q: Array, k: Array, v: Array, a: Array, b: Any, g: Any, S: Array) -> list[Any]:
    """a, q, k, b, v and g as their own heads in the arithmetic's dtype, each with the index of every head's."""
    b = np.zeros((0, q.shape[-1]), S.dtype) if b is None else b
    g = np.zeros((v.shape[-2], 1), S.dtype) if g is None else g
    return [heads(x.astype(S.dtype, copy=False), S.shape[:-2]) for x in (a, q, k, b, v, g)]


def _one(inputs: list[Any], h: int) -> tuple[Array, ...]:
    return tuple(x[index[h]] for x, index in inputs)


def _buffers(K: int, V: int, two: bool, g: Array) -> tuple[Any, Any]:
    """What one thread's kernels work in: see `forward`."""
    wide, tall, keys, channels = padded(K), padded(V), 2 if two else 1, 1 if g.shape[-1] == 1 else padded(K)
    of_keys = (2 * CHUNK, wide), (keys * CHUNK, wide), (keys * wide, CHUNK), (2 * keys * CHUNK, CHUNK)
    shapes = *of_keys, (keys * ROOM, tall), (CHUNK, tall), (1, tall)
    tables = *[(CHUNK, channels)] * 3, (CHUNK if channels == 1 else 0, CHUNK), (3, max(CHUNK, wide))
    return tuple(np.zeros(x, g.dtype) for x in shapes), tuple(np.ones(x, g.dtype) for x in tables)


def _head(given: tuple[Array, ...], S: Array, o: Array, states: Array, scale: float, buffers: tuple[Any, ...]) -> None:
    """All chunks of one head; `S` (padded), `o` and `states` are filled."""
    *arrays, v, g = given
    decays, units = decay_tables(g, len(v)), np.array([scale, 1, 0], v.dtype)
    at, inner = 0, S[: arrays[0].shape[1], : v.shape[1]]
    while (at := forward((*arrays, v), decays, S, o, states, units, *buffers, at)) < len(decays[2]):
        part = slice(at * CHUNK, (at + 1) * CHUNK)
        if len(states):
            states[at] = inner
        with np.errstate(all="ignore"):
            o[part], inner[...] = steps(**_steps(given, part, units[0]), S=inner)
        at += 1


def _steps(given: tuple[Array, ...], part: slice, scale: Any) -> dict[str, Any]:
    """A chunk as the reference takes it."""
    a, q, k, b, v, g = (x[part] for x in given)
    return {"q": q * scale, "k": k, "v": v, "a": a, "b": b if len(b) else None, "g": g}


def _buffers_back(K: int, V: int, two: bool, g: Array) -> tuple[Any, Any, Any]:
    """The same for the pullback, and more."""
    wide, tall, keys, channels = padded(K), padded(V), 2 if two else 1, 1 if g.shape[-1] == 1 else padded(K)
    work, tables = _buffers(K, V, two, g)
    of_steps = *[(2 * CHUNK, wide)] * 3, *[(keys * CHUNK, wide)] * 2, (2 * CHUNK, tall), (keys * CHUNK, tall)
    of_states = (wide, tall), (tall, wide), (tall, wide), (tall, CHUNK), (1, max(wide, tall))
    more = tuple(np.zeros(x, g.dtype) for x in (*of_steps, (2 * keys * CHUNK, CHUNK), *of_states))
    return work, tables, (*more, *(np.zeros((CHUNK, channels), g.dtype) for _ in range(2)))


def _head_back(
    given: tuple[Array, ...], states: Array, dS: Array, grads: tuple[Array, ...], scale: float, buffers: tuple[Any, ...]
) -> None:
    """All chunks of one head, the last one first; `dS` (padded) and `grads` are filled."""
    *arrays, v, g, do = given
    decays, units = decay_tables(g, len(v)), np.array([scale, 1, 0], v.dtype)
    at, inner = len(states) - 1, dS[: arrays[0].shape[1], : v.shape[1]]
    while (at := backward((*arrays, v, do), decays, states, dS, grads, units, *buffers, at)) >= 0:
        part = slice(at * CHUNK, (at + 1) * CHUNK)
        with np.errstate(all="ignore"):
            found = steps_pullback(**_steps(given[:-1], part, units[0]), S=states[at], do=do[part], dS=inner)
        dq, dk, dv, da, db, dg, inner[...] = found
        for grad, x in zip(grads, (da, dq * units[0], dk, db, dv, dg), strict=True):
            if x is not None:
                grad[part] = x
        at -= 1
