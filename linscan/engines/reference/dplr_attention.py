"""The delta rule and its generalisation in chunks, in array operations: `dplr_attention` and its pullback.

Inside a chunk let W be the running sum of g, and [x, y] the products under decay of `decayed`; ~ marks decay from the
chunk's start and ^ decay to its end. What the steps write along b (along k where there is no b) solves a triangular
system, and the state moves once per chunk:

    U = (I - [a, b])^-1 ([a, k] V + ã S),   O = q̃ S + [q, k] V + [q, b] U,   S' = e^W S + k^ᵀ V + b^ᵀ U

with [a, ·] strictly lower triangular, under the decay of the steps between. Without b:
U = (I - [a, k])^-1 (V + ã S), O = q̃ S + [q, k] U, S' = e^W S + k^ᵀ U.
"""

from typing import Any, NamedTuple

import numpy as np

from linscan._arrays import Array, host_any, namespace
from linscan.engines.reference.decayed import decayed, decayed_pullback, unit_inverse
from linscan.engines.reference.decayed_product import after_here, until_here
from linscan.engines.reference.dplr_steps import dplr_attention_step, steps, steps_pullback

__all__ = ["dplr_attention", "dplr_attention_pullback", "dplr_attention_step"]
_CHUNK = 64


class Chunk(NamedTuple):
    """What a chunk needs of its queries and keys: `writes` are k, or k and b, and each list has an entry for each."""

    q: Array  # ~, decayed from the start
    a: Array  # ~
    writes: list[Array]  # ^, decayed to the end
    reads: list[Array]  # [q, ·]
    erases: list[Array]  # [a, ·]
    inverse: Array
    stay: Array  # e^W over the whole chunk, (…, K, 1)


@np.errstate(all="ignore")
def dplr_attention(
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Any,
    g: Any,
    S0: Array,
    *,
    scale: Any,
    keep: bool,
    workers: Any,
    precision: str = "exact",
) -> tuple[Array, Array, Array | None]:
    """The outputs, the final state and, if `keep`, the states before every chunk, (chunks, …, K, V)."""
    xp, lead, length = namespace(v), S0.shape[:-2], v.shape[-2]
    o = xp.empty((*lead, length, v.shape[-1]), q.dtype)
    S, states, size = S0, [], _size(length)
    for t in range(0, length, size):
        states.append(S)
        part = _part(xp, size, t, S.dtype, q, k, v, a, b, g, scale)
        found, S = _forward(xp, part, S)
        o[..., t : t + size, :] = found[..., : min(size, length - t), :]
    kept = xp.stack(states) if keep and states else None
    return o, S if length else S.copy(), kept


@np.errstate(all="ignore")
def dplr_attention_pullback(
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Any,
    g: Any,
    states: Any,
    do: Array,
    dS: Array,
    *,
    scale: Any,
    workers: Any,
) -> tuple[Any, ...]:
    """The gradients of q, k, v, a, b, g and S0, with the leading axes of dS; None where the argument was."""
    xp, lead, length = namespace(v), dS.shape[:-2], v.shape[-2]
    given = (q, k, v, a, b, g)
    grads = [None if x is None else xp.empty((*lead, *x.shape[-2:]), dS.dtype) for x in given]
    size = _size(length)
    for t in reversed(range(0, length, size)):
        part = [None if x is None else xp.conj(x) for x in _part(xp, size, t, dS.dtype, *given, scale)]
        flow = _padded(xp, do[..., t : t + size, :], size, dS.dtype)
        *found, dS = _backward(xp, part, xp.conj(states[t // size]), flow, dS)
        found[0] = found[0] * scale
        for grad, x in zip(grads, found, strict=True):
            if grad is not None:
                x = x.real if grad is grads[-1] else x
                grad[..., t : t + size, :] = x[..., : min(size, length - t), :]
    return *grads, dS


def _size(length: int) -> int:
    """Steps of a chunk: a power of two."""
    return min(_CHUNK, 1 << max(0, length - 1).bit_length())


def _padded(xp: Any, x: Array, size: int, dtype: Any) -> Array:
    """`x` with steps of zeros up to `size`, which write nothing and decay nothing."""
    x = x.astype(dtype, copy=False)
    short = size - x.shape[-2]
    return xp.concatenate([x, xp.zeros((*x.shape[:-2], short, x.shape[-1]), dtype)], axis=-2) if short else x


def _part(xp: Any, size: int, t: int, dtype: Any, *given: Any) -> list[Any]:
    """One chunk of q (times the scale, which comes last), k, v, a, b and g; no decay is a decay of 1."""
    rows = [None if x is None else x[..., t : t + size, :] for x in given[:-1]]
    part: list[Any] = [None if x is None else _padded(xp, x, size, dtype) for x in rows]
    no_decay = xp.zeros((*part[2].shape[:-1], 1), part[2].real.dtype)
    return [part[0] * given[-1], *part[1:5], no_decay if part[5] is None else part[5].real]


def _chunk(xp: Any, q: Array, k: Array, a: Array, b: Any, g: Array) -> Chunk:
    writes = [k] if b is None else [k, b]
    earlier = until_here(g)
    to_end, total = xp.exp(after_here(g)), xp.exp(g.sum(axis=-2))
    erases = [_down(xp, decayed(_up(xp, a), w, g)) for w in writes]
    return Chunk(
        q * xp.exp(earlier + g),
        a * xp.exp(earlier),
        [w * to_end for w in writes],
        [decayed(q, w, g) for w in writes],
        erases,
        unit_inverse(erases[-1]),
        total[..., None],
    )


def _up(xp: Any, x: Array) -> Array:
    """Rows moved one step up: row t of a meets the decays of row t - 1, since it acts before its step's decay."""
    return xp.concatenate([x[..., 1:, :], xp.zeros_like(x[..., :1, :])], axis=-2)


def _down(xp: Any, x: Array) -> Array:
    return xp.concatenate([xp.zeros_like(x[..., :1, :]), x[..., :-1, :]], axis=-2)


def _values(c: Chunk, v: Array, S: Array) -> list[Array]:
    """What is written along each of `writes`: U alone, or V and U."""
    right = c.a @ S
    if len(c.writes) == 1:
        return [c.inverse @ (v + right)]
    return [v, c.inverse @ (c.erases[0] @ v + right)]


def _forward(xp: Any, part: list[Any], S: Array) -> tuple[Array, Array]:
    q, k, v, a, b, g = part
    c = _chunk(xp, q, k, a, b, g)
    values = _values(c, v, S)
    o, new = c.q @ S, c.stay * S
    for write, read, value in zip(c.writes, c.reads, values, strict=True):
        o, new = o + read @ value, new + write.swapaxes(-1, -2) @ value
    bad = _not_finite(xp, o, new)
    if host_any(bad):  # the products spread NaN over the chunk; the steps do not
        o_steps, new_steps = steps(q, k, v, a, b, g, S)
        o, new = xp.where(bad, o_steps, o), xp.where(bad, new_steps, new)
    return o, new


def _backward(xp: Any, part: list[Any], S: Array, do: Array, dS: Array) -> tuple[Any, ...]:
    """Gradients of one chunk and of the state before it.

    Adjoint of each line above, in reverse; dA of a solve A⁻¹ R with result U and Λ = A⁻ᵀ dU is Λ Uᵀ. The gradient of g
    needs no product of its own: by the step's differential, per key channel,
      dg[t] = dg[t+1] + q dq - k dk - b db (at t) + a da (at t+1),   dg after the last step = Σ_v S' dS'.
    """
    q, k, v, a, b, g = part
    c = _chunk(xp, q, k, a, b, g)
    values, T = _values(c, v, S), lambda x: x.swapaxes(-1, -2)
    end = c.stay * S + sum(T(w) @ x for w, x in zip(c.writes, values, strict=True))
    dvalues = [T(read) @ do + w @ dS for read, w in zip(c.reads, c.writes, strict=True)]
    solved = T(c.inverse) @ dvalues[-1]
    dv = solved if b is None else dvalues[0] + T(c.erases[0]) @ solved
    earlier = until_here(g)
    dq, da = xp.exp(earlier + g) * (do @ T(S)), xp.exp(earlier) * (solved @ T(S))
    dwrites = []
    for w, x in zip([k] if b is None else [k, b], values, strict=True):
        to_q, dw = decayed_pullback(q, w, g, do @ T(x))
        to_a, more = decayed_pullback(_up(xp, a), w, g, _up(xp, solved @ T(x)))
        dq, da = dq + to_q, da + _down(xp, to_a)
        dwrites.append(dw + more + xp.exp(after_here(g)) * (x @ T(dS)))
    dk, db = dwrites[0], None if b is None else dwrites[1]
    dg = _gate(xp, (end * dS).sum(axis=-1), q * dq - k * dk - (0 if b is None else b * db), a * da, g)
    before_chunk = c.stay * dS + T(c.q) @ do + T(c.a) @ solved
    found = [dq, dk, dv, da, db, dg, before_chunk]
    bad = _not_finite(xp, *(x for x in found if x is not None))
    if host_any(bad):
        again = steps_pullback(q, k, v, a, b, g, S, do, dS)
        found = [None if x is None else xp.where(bad, y, x) for x, y in zip(found, again, strict=True)]
    return tuple(found)


def _gate(xp: Any, last: Array, own: Array, erased: Array, g: Array) -> Array:
    """dg from the last step back; a step that forgets passes nothing on."""
    if g.shape[-1] == 1:
        last, own, erased = (x.sum(axis=-1, keepdims=True) for x in (last, own, erased))
    dg, forgets = xp.empty(own.shape, own.dtype), xp.isneginf(g)
    for t in reversed(range(g.shape[-2])):
        last = xp.where(forgets[..., t, :], 0, last + own[..., t, :])
        dg[..., t, :] = last
        last = last + erased[..., t, :]
    return dg


def _not_finite(xp: Any, *found: Array) -> Array:
    """Which rows hold NaN or inf, (…, 1, 1)."""
    bad = [~xp.isfinite(x).all(axis=(-2, -1), keepdims=True) for x in found]
    return sum(bad[1:], bad[0])
