"""The delta rule and its generalisation on the CPU: one head after another, in chunks, on as many threads as heads.

A chunk that holds NaN or inf, or whose decays could leave the dtype's range, is run step by step by the reference.
"""

import math
from collections.abc import Callable
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
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Any,
    g: Any,
    S0: Array,
    *,
    scale: float,
    keep: bool,
    workers: Any,
    precision: str = "exact",
) -> tuple[Array, Array, Any]:
    """See `linscan.ops.dplr`; if `keep`, the states before every chunk, (heads, chunks, K, V)."""
    return run((a, q, k, b, v, g), lambda *own: own, q, S0, scale, keep, workers)


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
    given, lead = (a, q, k, b, v, g), dS.shape[:-2]
    grads = [None if x is None else np.empty((math.prod(lead), *x.shape[-2:]), dS.dtype) for x in given]

    def places(h: int) -> list[Any]:
        return [None if x is None else x[h] for x in grads]

    dS = run_back(given, lambda *own: own, places, lambda *done: None, states, do, dS, scale, workers)
    da, dq, dk, db, dv, dg = (x if x is None else x.reshape(*lead, *x.shape[1:]) for x in grads)
    return dq, dk, dv, da, db, dg, dS


def run(
    given: tuple[Any, ...], terms: Callable[..., Any], q: Array, S0: Array, scale: float, keep: bool, workers: Any
) -> tuple[Array, Array, Any]:
    """Outputs, final state and kept ones; `terms` makes a, q, k, b, v and g of a head of what it has of the `given`."""
    lead, (K, V), length, compute = S0.shape[:-2], S0.shape[-2:], q.shape[-2], S0.dtype
    every, count = _Heads(given, terms, lead, compute), math.prod(lead)
    S = np.zeros((count, padded(K), padded(V)), compute)
    S[:, :K, :V] = S0.reshape(count, K, V)
    o = np.empty((count, length, V), compute)
    states = np.empty((count, -(-length // CHUNK) if keep else 0, K, V), compute)

    def body(lo: int, hi: int) -> None:
        work: Any = None
        for h in range(lo, hi):
            mine = every.terms(every.own(h))
            work = work or _buffers(K, V, mine)
            _head(mine, S[h], o[h], states[h], scale, work)

    parallel_for(body, count, grain=1 + _GRAIN // max(1, length * K * V), workers=workers)
    final = np.ascontiguousarray(S[:, :K, :V]).reshape(*lead, K, V)
    return o.reshape(*lead, length, V).astype(q.dtype, copy=False), final, states if keep else None


def run_back(
    given: tuple[Any, ...],
    terms: Callable[..., Any],
    places: Callable[[int], Any],
    finish: Callable[..., None],
    states: Array,
    do: Array,
    dS: Array,
    scale: float,
    workers: Any,
) -> Array:
    """The gradient of S0. `places(h)` says where those of a head's terms go, None where nobody needs them.

    ``finish(h, own, a, grads)`` then makes of them those of what the head has `own` of the given.
    """
    (K, V), length, compute = dS.shape[-2:], do.shape[-2], dS.dtype
    every, count = _Heads(given, terms, dS.shape[:-2], compute), math.prod(dS.shape[:-2])
    flow = np.zeros((count, padded(K), padded(V)), compute)
    flow[:, :K, :V] = dS.reshape(count, K, V)
    do = np.ascontiguousarray(do, compute).reshape(count, length, V)

    def body(lo: int, hi: int) -> None:
        work: Any = None
        for h in range(lo, hi):
            own = every.own(h)
            mine = every.terms(own)
            work = work or _buffers_back(K, V, mine)
            where = places(h)
            grads = tuple(np.empty_like(x) if to is None else to for x, to in zip(mine, where, strict=True))
            _head_back((*mine, do[h]), states[h], flow[h], grads, scale, work)
            finish(h, own, mine[0], grads)

    parallel_for(body, count, grain=1 + _GRAIN // max(1, length * K * V), workers=workers)
    return flow[:, :K, :V].reshape(dS.shape)


class _Heads:
    """What every head has of arrays (…, T, …), or None, whose leading axes broadcast, and its terms."""

    def __init__(self, given: tuple[Any, ...], terms: Callable[..., Any], lead: tuple[int, ...], dtype: Any) -> None:
        self.given = [None if x is None else heads(x, lead) for x in given]
        self.make, self.dtype = terms, dtype

    def own(self, h: int) -> list[Any]:
        return [None if x is None else x[0][x[1][h]] for x in self.given]

    def terms(self, own: list[Any]) -> tuple[Array, ...]:
        """a, q, k, b (no rows if there is none), v and g (zeros) in the arithmetic's dtype."""
        a, q, k, b, v, g = self.make(*own)
        b, g = np.empty((0, q.shape[1])) if b is None else b, np.zeros((len(v), 1)) if g is None else g
        a, q, k, b, v, g = (np.ascontiguousarray(x, self.dtype) for x in (a, q, k, b, v, g))
        return a, q, k, b, v, g


def _buffers(K: int, V: int, mine: tuple[Array, ...]) -> tuple[Any, Any]:
    """What one thread's kernels work in: see `forward`."""
    *_, b, _, g = mine
    wide, tall, keys, channels = padded(K), padded(V), 2 if len(b) else 1, 1 if g.shape[-1] == 1 else padded(K)
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


def _buffers_back(K: int, V: int, mine: tuple[Array, ...]) -> tuple[Any, Any, Any]:
    """The same for the pullback, and more."""
    work, tables = _buffers(K, V, mine)
    wide, tall, keys, dtype = padded(K), padded(V), len(work[1]) // CHUNK, work[0].dtype
    of_steps = *[(2 * CHUNK, wide)] * 3, *[(keys * CHUNK, wide)] * 2, (2 * CHUNK, tall), (keys * CHUNK, tall)
    of_states = (wide, tall), (tall, wide), (tall, wide), (tall, CHUNK), (1, max(wide, tall))
    more = tuple(np.zeros(x, dtype) for x in (*of_steps, (2 * keys * CHUNK, CHUNK), *of_states))
    return work, tables, (*more, *(np.zeros_like(tables[0]) for _ in range(2)))


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
