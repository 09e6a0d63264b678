"""What `local_attention` works on and remembers: its arguments in one form, the state it returns, their gradient.

Apart from `local_attention` because the forward, the step and the gradient all stand on it. The state is one array
(…, window - 1, K + V + 2), oldest step first: key, value, gate, and 1 where a later query may look, else 0.
"""

from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from linscan import _arrays
from linscan._arrays import Array


class Problem(NamedTuple):
    """All arguments of one dtype, in the order of the run; keys, values and gates begin with those of the state.

    A query sees a key of its own window whose number in `seen` is its own in `own`; both None: all of the window.
    """

    q: Array
    k: Array
    v: Array
    g: Array | None
    own: Any
    seen: Any
    options: dict[str, Any]
    past: int  # steps that come from the state
    kept: Array | None  # where a gate is not -inf, which is no gate but a reset
    reverse: bool

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arrays that an engine takes, all of them with all leading axes."""
        wide = [(self.q, 2), (self.k, 2), (self.v, 2), (self.g, 1), (self.own, 1), (self.seen, 1)]
        xp = _arrays.namespace(self.q)
        lead = np.broadcast_shapes(*(x.shape[: x.ndim - n] for x, n in wide if x is not None))
        return tuple(None if x is None else xp.broadcast_to(x, lead + x.shape[x.ndim - n :]) for x, n in wide)


def prepare(who: str, q: Any, k: Any, v: Any, window: Any, g: Any, state: Any, **given: Any) -> Problem:
    """The arguments of `local_attention` after all checks; `given` are its options."""
    reset, mask, causal, reverse = given["reset"], given["mask"], bool(given["causal"]), bool(given["reverse"])
    xp, q, k, v, g, state, reset, mask = _arrays.take(who, q=q, k=k, v=v, g=g, state=state, reset=reset, mask=mask)
    dtype = _real_dtype(who, q=q, k=k, v=v, g=g, state=state)
    window = _arrays.check_count(who, "window", window, 1)
    q, k, v = (xp.asarray(x, dtype) for x in (q, k, v))
    if (
        min(x.ndim for x in (q, k, v)) < 2
        or q.shape[-1] != k.shape[-1]
        or not q.shape[-2] == k.shape[-2] == v.shape[-2]
    ):
        raise ValueError(
            f"{who}: q and k must have shape (…, T, K) and v (…, T, V); got {q.shape} and {k.shape} and {v.shape}"
        )
    if state is not None and not causal:
        raise ValueError(f"{who}: a state needs causal=True; later keys cannot be carried")
    length, scale = q.shape[-2], given["scale"]
    g = None if g is None else _over_time(who, "g", xp.asarray(g, dtype), length)
    reset, mask = (_flags(who, name, x, length) for name, x in (("reset", reset), ("mask", mask)))
    if reverse:
        q, k, v = (x[..., ::-1, :] for x in (q, k, v))
        g, reset, mask = (None if x is None else x[..., ::-1] for x in (g, reset, mask))
    kept = None
    if g is not None and _arrays.host_any(g, lambda x: x == -np.inf, otherwise=True):
        kept = g != -np.inf
        reset, g = ~kept if reset is None else reset | ~kept, _where(kept, g)
    own, seen = _numbers(xp, reset, mask, length)
    past = 0
    if state is not None:
        past = window - 1
        k, v, g, own, seen = _extended(who, xp.asarray(state, dtype), past, k, v, g, own, seen)
    _check_lead(who, q=q.shape[:-2], k=k.shape[:-2], v=v.shape[:-2], **_leads(g=g, own=own, seen=seen))
    scale = 1 / sqrt(max(1, q.shape[-1])) if scale is None else float(scale)
    options = {"window": window, "causal": causal, "scale": scale}
    return Problem(q, k, v, g, own, seen, options, past, kept, reverse)


def _real_dtype(who: str, **named: Any) -> np.dtype:
    dtype = _arrays.result_dtype(who, **named)
    if dtype.kind == "c":
        raise TypeError(f"{who}: arguments must be real, for weights are ordered by size; got {dtype}")
    return dtype


def _over_time(who: str, name: str, x: Array, length: int) -> Array:
    """`x` (…, T), with its last axis in full."""
    return _arrays.broadcast_to(who, name, x, (*x.shape[:-1], length))


def _flags(who: str, name: str, x: Any, length: int) -> Array | None:
    if x is None:
        return None
    x = _arrays.namespace(x).asarray(x)
    if x.dtype.kind not in "biu":
        raise TypeError(f"{who}: {name} must be boolean; got {x.dtype}")
    return _over_time(who, name, x.astype(bool, copy=False), length)


def _numbers(xp: Any, reset: Any, mask: Any, length: int) -> tuple[Any, Any]:
    """The number of the sequence that a query belongs to, and that of a key; -1 for a key that nobody sees."""
    if reset is None and mask is None:
        return None, None
    own = xp.zeros((length,), np.int32) if reset is None else xp.cumsum(reset, axis=-1, dtype=np.int32)
    return own, own if mask is None else xp.where(mask, own, np.int32(-1))


def _extended(who: str, state: Array, past: int, k: Any, v: Any, g: Any, own: Any, seen: Any) -> tuple[Any, ...]:
    """Keys, values, gates and numbers with those of the state before them."""
    xp, width = _arrays.namespace(k), k.shape[-1] + v.shape[-1] + 2
    if state.ndim == 0:
        state = xp.broadcast_to(state, (past, width))
    if state.ndim < 2 or state.shape[-2:] != (past, width):
        raise ValueError(f"{who}: state must have shape (…, {past}, {width}) or be 0; got {state.shape}")
    length = k.shape[-2]
    own = xp.zeros((length,), np.int32) if own is None else own
    before = xp.where(state[..., -1] != 0, np.int32(0), np.int32(-1))
    parts = [(state[..., : k.shape[-1]], k, 2), (state[..., k.shape[-1] : -2], v, 2)]
    parts += [(before, own if seen is None else seen, 1)] + ([] if g is None else [(state[..., -2], g, 1)])
    k, v, seen, *gates = (_joined(who, xp, *part) for part in parts)
    return k, v, gates[0] if gates else None, own, seen


def _joined(who: str, xp: Any, early: Array, late: Array, n: int) -> Array:
    """`late` after `early` along time, the first of the last `n` axes, with leading axes broadcast."""
    lead = _check_lead(who, state=early.shape[: early.ndim - n], others=late.shape[: late.ndim - n])
    return xp.concatenate([xp.broadcast_to(x, lead + x.shape[x.ndim - n :]) for x in (early, late)], -n)


def _leads(**named: Any) -> dict[str, tuple[int, ...]]:
    return {name: x.shape[:-1] for name, x in named.items() if x is not None}


def _check_lead(who: str, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    return _arrays.broadcast_shapes(f"{who}: leading axes", **shapes)


def carry(p: Problem) -> Array:
    """The state that continues the run, in memory of its own; no keys and values that a later query may not see."""
    xp, length = _arrays.namespace(p.q), p.q.shape[-2]
    flag = xp.asarray(_remembered(p), p.k.dtype)[..., None]
    gate = xp.zeros((1,), p.k.dtype) if p.g is None else p.g[..., length:, None]
    parts = [_where(flag != 0, x[..., length:, :]) for x in (p.k, p.v)]
    parts += [gate, flag]  # a gate lies between other keys and queries even if its own key is masked
    lead = np.broadcast_shapes(*(x.shape[:-1] for x in parts))
    return xp.concatenate([xp.broadcast_to(x, (*lead, x.shape[-1])) for x in parts], -1)


def _where(flag: Array, x: Array) -> Array:
    """`x`, zero where not `flag`, in its own dtype: CuPy chooses among two bfloat16 arrays in float32."""
    xp = _arrays.namespace(x)
    return xp.where(flag, x, xp.zeros((), x.dtype)).astype(x.dtype, copy=False)


def _remembered(p: Problem) -> Array:
    """Which of the last window - 1 steps the next query may look at."""
    xp, length = _arrays.namespace(p.q), p.q.shape[-2]
    last = xp.zeros((1,), np.int32) if length == 0 else p.own[..., -1:]
    return p.seen[..., length:] == last


def pass_on(p: Problem, grads: list[Any], dstate: Any, like: Any) -> tuple[Any, ...]:
    """The gradients of q, k, v, g and the state from those of a `Problem`'s q, k, v and g and of the final state."""
    dq, dk, dv, dg = grads
    xp, length, width = _arrays.namespace(p.q), p.q.shape[-2], p.k.shape[-1]
    if dstate is not None:
        dlast = _where(_remembered(p)[..., None], dstate[..., :-2])
        dk, dv = (_added(x, y, length, 2) for x, y in ((dk, dlast[..., :width]), (dv, dlast[..., width:])))
        dg = None if dg is None else _added(dg, dstate[..., -2], length, 1)
    first = None
    if like is not None:
        gate = xp.zeros((1,), dk.dtype) if dg is None else dg[..., : p.past, None]
        parts = [dk[..., : p.past, :], dv[..., : p.past, :], gate, xp.zeros((1,), dk.dtype)]
        lead = np.broadcast_shapes(*(x.shape[:-1] for x in parts))
        first = xp.concatenate([xp.broadcast_to(x, (*lead, x.shape[-1])) for x in parts], -1)
    dk, dv = dk[..., p.past :, :], dv[..., p.past :, :]
    dg = None if dg is None else dg[..., p.past :]
    if dg is not None and p.kept is not None:
        dg = _where(p.kept, dg)
    if p.reverse:
        dq, dk, dv = (x[..., ::-1, :] for x in (dq, dk, dv))
        dg = None if dg is None else dg[..., ::-1]
    return dq, dk, dv, dg, first


def _added(x: Array, tail: Array, length: int, n: int) -> Array:
    """`x` with `tail` added from step `length` on; sums over broadcast axes are still to come."""
    xp = _arrays.namespace(x)
    # A state is not repeated along the axes that only the queries have, such as the query heads of one key head: its
    # cotangent goes to one of them, for their gradients are summed.
    fold = x.ndim - tail.ndim
    tail = tail[(None,) * fold]
    whole = xp.zeros((*x.shape[: x.ndim - n], tail.shape[-n], *x.shape[x.ndim - n + 1 :]), x.dtype)
    at = tuple(slice(0, m) for m in tail.shape[: x.ndim - n])
    whole[at] = tail
    x = x.copy()
    x[(..., slice(length, None), *(slice(None),) * (n - 1))] += whole
    return x
