"""Matrix states on the GPU step after step, in the arithmetic of their dtype: every case, and the exact one.

Passes of recurrent.cu, S being (K, V) or, where what is summed over is V, its transpose; dS backwards in time:

    o = S^T q          S = e S + k v^T                       K x V
    dq = S do          the same, turned                      V x K
    dv = dS^T k        dS += q do^T, then e dS               K x V, backwards
    dk = dS v          the same, turned                      V x K, backwards

With u = S^T a written along b: forwards u is read first; dq and da = S du go along with it turned, backwards
du = dS^T b is read and written along a, and db = dS u along with dk. Without b, w = v + u is written along k, and
dv = du. A number that is v x K of one pass comes from another, so nothing is solved for twice.
"""

from typing import Any, NamedTuple

import cupy

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda.recurrent_pass import BY_COLUMN, BY_ROW, EVERY, READ, SUM, Pass, gate, run, sizes_of

_WIDEST = Pass(1, 2, 1, 0, 0)


class Kept(NamedTuple):
    """For the pullback: states after every EVERY steps if there are decays, what the steps read (u, or w), and S0."""

    states: Array | None
    read: Array | None = None
    first: Array | None = None


def fits(length: int, keys: int, values: int, dtype: Any) -> bool:
    """Whether the states are not empty and no larger than a block of threads holds."""
    size = accum_dtype(dtype).itemsize
    pairs = (keys, values), (values, keys)
    return min(length, keys, values) > 0 and all(
        sizes_of(_WIDEST, *pair, 1 << 20, size, by) for pair in pairs for by in (BY_ROW, BY_COLUMN)
    )


def linear_attention(q, k, v, g, S0, *, lead, scale, keep):
    """See `linscan.ops.linear_attention`; also returns, if `keep`, what the pullback wants."""
    with q.device:
        o, S, states = _made(lead, q, v, g, keep)
        rows, columns = [_wide(k), _wide(q)], [_wide(v)]
        run(Pass(writes=1, after=1), rows, columns, g, S0, [o], lead=lead, last=S, kept=states, scale=scale)
        return o.astype(q.dtype, copy=False), S, Kept(states) if keep else None


def linear_attention_pullback(q, k, v, g, S0, kept, do, dS, *, lead, scale):
    """See `linscan.ops.linear_attention.linear_attention_vjp`."""
    with q.device:
        q, k, v = (_wide(x) for x in (q, k, v))
        do, dS = _flow(do, scale), _flow(dS, 1)
        dq, dk, dv = (cupy.empty((*lead, *x.shape[-2:]), q.dtype) for x in (q, k, v))
        dS0 = None if S0 is None else cupy.empty((*lead, *dS.shape[-2:]), dS.dtype)
        back = {"lead": lead, "g": _late(g)[0]}
        back |= {"first": dS, "program": Pass(pre=1, reads=1)}
        states = {"last": dS0, "kept": kept.states, "multiply": g is not None}
        dots = run(rows=_late(q, k), columns=_late(do), outs=_late(dv), **states, **back)
        run(rows=_late(do, v), columns=_late(q), outs=_late(dk), turned=True, **back)
        run(Pass(writes=1, after=1), [v, do], [k], g, S0, [dq], lead=lead, turned=True)
        dg = None if g is None else gate(g, [(q, dq), (k, dk)], dots, lead)
        return *map(_conj, (dq, dk, dv)), dg, None if dS0 is None else _conj(dS0)


def dplr(q, k, v, a, b, g, S0, *, scale, keep):
    """See `linscan.ops.dplr`; also returns, if `keep`, what the pullback wants."""
    lead, dtype = S0.shape[:-2], q.dtype
    with q.device:
        o, S, states = _made(lead, q, v, g, keep)
        q, k, v, a, b = (None if x is None else _wide(x) for x in (q, k, v, a, b))
        read = cupy.empty(o.shape, o.dtype) if keep else None
        rows, feed = ([a, k, q], SUM) if b is None else ([a, b, k, q], READ)
        program = Pass(reads=1, writes=len(rows) - 2, after=1, feed=feed)
        run(program, rows, [v], g, S0, [read, o], lead=lead, last=S, kept=states, scale=scale)
        return o.astype(dtype, copy=False), S, Kept(states, read, S0) if keep else None


def dplr_pullback(q, k, v, a, b, g, kept, do, dS, *, scale):
    """The gradients of q, k, v, a, b, g and S0, with the leading axes of dS; None where the argument was."""
    lead = dS.shape[:-2]
    with q.device:
        q, k, v, a, b = (None if x is None else _wide(x) for x in (q, k, v, a, b))
        do, dS, u = _flow(do, scale), _flow(dS, 1), kept.read
        sizes = [None if x is None else (*lead, *x.shape[-2:]) for x in (q, k, v, a, b)]
        dq, dk, dv, da, db = (None if size is None else cupy.empty(size, q.dtype) for size in sizes)
        du, dS0 = dv if b is None else cupy.empty(dv.shape, dv.dtype), cupy.empty(dS.shape, dS.dtype)
        back = {"lead": lead, "g": _late(g)[0], "first": dS}
        states = {"last": dS0, "kept": kept.states, "multiply": g is not None}
        # What is written along which direction; what comes out of dS by that direction, and by what is written.
        along, written, *outs = ([k], [u], [du], [dk]) if b is None else ([b, k], [u, v], [du, dv], [db, dk])
        n = len(along)
        feeds, reads = Pass(pre=1, reads=n, writes=1, feed=READ), Pass(pre=1, reads=n, writes=1)
        dots = run(feeds, _late(q, *along, a), _late(do), outs=_late(*outs[0]), **states, **back)
        run(reads, _late(do, *written, du), _late(q, a), outs=_late(*outs[1]), turned=True, **back)
        forwards = Pass(reads=1, writes=n, after=1)
        run(forwards, [du, *written, do], along, g, kept.first, [da, dq], lead=lead, turned=True)
        pairs = [(q, dq), (k, dk), (a, da), *([] if b is None else [(b, db)])]
        dg = None if g is None else gate(g, pairs, dots, lead)
        dq, dk, dv, da, db, dS0 = (None if x is None else _conj(x) for x in (dq, dk, dv, da, db, dS0))
        return dq, dk, dv, da, db, dg, dS0


def _made(lead: tuple[int, ...], q: Array, v: Array, g: Array | None, keep: bool) -> tuple[Array, Array, Array | None]:
    """Memory for outputs and final state, and for the states between chunks if dg will want them."""
    (length, keys), values, dtype = q.shape[-2:], v.shape[-1], accum_dtype(q.dtype)
    o, S = cupy.empty((*lead, length, values), dtype), cupy.empty((*lead, keys, values), dtype)
    chunks = -(-length // EVERY)
    return o, S, cupy.empty((*lead, chunks, keys, values), dtype) if keep and g is not None else None


def _wide(x: Array) -> Array:
    return x.astype(accum_dtype(x.dtype), copy=False)


def _flow(x: Array, scale: float) -> Array:
    """A cotangent as the passes take it: conjugated, for then what they make is the gradients' conjugates."""
    x = _conj(_wide(x))
    return x if scale == 1 else x * x.dtype.type(scale)


def _conj(x: Array) -> Array:
    return x.conj() if x.dtype.kind == "c" else x


def _late(*arrays: Array | None) -> list[Array | None]:
    """These with time backwards."""
    return [None if x is None else x[..., ::-1, :] for x in arrays]
