"""The delta rule on tensor cores for long sequences: segments of them side by side; see delta_chunk.py.

What a segment does to a state S is M S + N: N is what it makes of the zero state, M what it makes of the identity when
nothing is written. Segments hand the state on by these, and are run again from their true states.
"""

from typing import NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda import delta_chunk
from linscan.engines.cuda._load import kernel

_VALUES, _WIDEST = 16, 256  # of a block, and keys at most, as in delta_segments.cu
_WHOLE, _SEGMENT = 256, 64  # chunks of the longest sequence that is not cut, and of a segment of a longer one


def is_long(length: int) -> bool:
    """Whether a sequence is cut: it follows from its length alone, and so do its bits."""
    return -(-length // delta_chunk.STEPS) > _WHOLE


class Cut(NamedTuple):
    """What is kept of a long sequence: of its segments, what each makes of a state, and of the steps after them."""

    segments: delta_chunk.Kept
    moves: Array  # (…, segments, K, K)
    rest: delta_chunk.Kept | None


def delta_rule(q, k, v, beta, g, S0, *, scale: float, keep: bool) -> tuple[Array, Array, Cut | None]:
    """As `delta_chunk.delta_rule`."""
    step, keys, lead = _SEGMENT * delta_chunk.STEPS, k.shape[-1], S0.shape[:-2]
    parts = [_cut(x, step, -1 if x is beta else -2) for x in (q, k, v, beta, g)]
    (q1, k1, v1, beta1, g1), (q2, k2, v2, beta2, g2) = zip(*parts, strict=True)
    segments = q1.shape[-3]
    zero, one = cupy.zeros(S0.shape[-2:], np.float32), cupy.eye(keys, dtype=np.float32)
    zero, one = (cupy.broadcast_to(x, (*lead, segments, *x.shape)) for x in (zero, one))
    none = cupy.zeros((step, keys), q.dtype)
    ends = delta_chunk.delta_rule(q1, k1, v1, beta1, g1, zero, scale=scale, keep=False, read=False)[1]
    moves = delta_chunk.delta_rule(q1, k1, none, beta1, g1, one, scale=scale, keep=False, read=False)[1]
    starts = _carried(S0, moves, ends, back=False)
    o, ends, kept = delta_chunk.delta_rule(q1, k1, v1, beta1, g1, starts, scale=scale, keep=keep)
    o, S, rest = o.reshape(*lead, segments * step, -1), cupy.ascontiguousarray(ends[..., -1, :, :]), None
    if q2.shape[-2]:
        more, S, rest = delta_chunk.delta_rule(q2, k2, v2, beta2, g2, S, scale=scale, keep=keep)
        o = cupy.concatenate([o, more], axis=-2)
    return o, S, None if kept is None else Cut(kept, moves, rest)


def delta_rule_pullback(q, k, v, beta, g, kept: Cut, do, dS, *, scale: float) -> tuple[Array | None, ...]:
    """As `delta_chunk.delta_rule_pullback`; the gradient of the state is handed on by the transposed moves."""
    step, lead = _SEGMENT * delta_chunk.STEPS, dS.shape[:-2]
    parts = [_cut(x, step, -1 if x is beta else -2) for x in (q, k, do, beta, g)]
    (q1, k1, do1, beta1, g1), (q2, k2, do2, beta2, g2) = zip(*parts, strict=True)
    found, segments = [], q1.shape[-3]
    if kept.rest is not None:
        call = delta_chunk.Call(q2, k2, do2, beta2, g2, dS)
        back = call.kept()
        dS = call.backwards(back, scale)
        found.append(call.gradients(kept.rest, back, scale))
    after = cupy.zeros((*lead, segments, *dS.shape[-2:]), np.float32)
    begins = delta_chunk.Call(q1, k1, do1, beta1, g1, after).backwards(None, scale)
    after = _carried(dS, kept.moves, begins, back=True)
    call = delta_chunk.Call(q1, k1, do1, beta1, g1, after)
    back = call.kept()
    dS0 = cupy.ascontiguousarray(call.backwards(back, scale)[..., 0, :, :])
    whole = [
        None if x is None else x.reshape(*lead, segments * step, *x.shape[len(lead) + 2 :])
        for x in call.gradients(kept.segments, back, scale)
    ]
    if found:
        axes = (-2, -2, -2, -1, -2)
        whole = [
            None if x is None else cupy.concatenate([x, y], axis=axis)
            for x, y, axis in zip(whole, found[0], axes, strict=True)
        ]
    return *whole, dS0


def _cut(x: Array | None, step: int, axis: int) -> tuple[Array | None, Array | None]:
    """The whole segments of `step` steps, an axis of them before time, and the steps after them."""
    if x is None:
        return None, None
    at = x.ndim + axis
    whole = x.shape[at] // step
    first, rest = x[(slice(None),) * at + (slice(whole * step),)], x[(slice(None),) * at + (slice(whole * step, None),)]
    return first.reshape(*x.shape[:at], whole, step, *x.shape[at + 1 :]), rest


def _carried(first: Array, moves: Array, adds: Array, *, back: bool) -> Array:
    """The states before all segments, or the gradients after them, from that which begins: see delta_segments.cu."""
    segments, keys, values = adds.shape[-3:]
    first = cupy.ascontiguousarray(cupy.broadcast_to(first, (*adds.shape[:-3], keys, values)))
    states, code = (
        cupy.empty(adds.shape, np.float32),
        kernel("delta_segments.cu", "carry", "float32", ("BACK", int(back))),
    )
    blocks, shared = first.size // (keys * values) * -(-values // _VALUES), 4 * _WIDEST * (_VALUES + 33)
    if code.max_dynamic_shared_size_bytes < shared:
        code.max_dynamic_shared_size_bytes = shared
    code((blocks,), (256,), (first, moves, adds, states, np.int32(keys), values, np.int32(segments)), shared_mem=shared)
    return states
