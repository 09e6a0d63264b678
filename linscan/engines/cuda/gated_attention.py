"""Linear attention on tensor cores with decays by channel: gated_attention.cu, and its pullback.

The pullback is the forward's two passes backwards in time for dv and dS0, and one over all chunks each for dq and dk.
"""

import math
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.head_layout import packed, placed, summed

_THREADS, _STEPS, _PAD, _TILE = 128, 64, 8, 64  # as in gated_states.cu
_WHOLE, _SEGMENT = 128, 32  # chunks of the longest sequence that is not cut, and of a segment of a longer one
_PASS = np.dtype([(n, "i8") for n in ("keys", "values", "head", "late", "backwards", "segment")] + [("scale", "f8")])


class Kept(NamedTuple):
    """What the pullback needs of the forward: the states before every chunk, in 16 bits."""

    states: Array


def linear_attention(q, k, v, g, S0, *, lead, scale, keep):
    """See `linscan.ops.linear_attention`; also returns, if `keep`, what the pullback wants."""
    kept, S = _states(k, v, g, S0, lead=lead)
    o = _chunks("outputs", q, k, v, g, kept, lead=lead, scale=scale)
    return o, S, Kept(kept) if keep else None


def linear_attention_pullback(q, k, v, g, S0, kept, do, dS, *, lead, scale):
    """See `linscan.ops.linear_attention.linear_attention_vjp`."""
    last = dS.astype(np.float32, copy=False) / np.float32(scale)
    turned = [x[..., ::-1, :] for x in (q, k, v, g, do)]
    q_back, k_back, v_back, g_back, do_back = turned
    slopes, dS0, dots = _states(q_back, do_back, g_back, last, lead=lead, late=1, scale=scale, other=kept.states)
    back = {"lead": lead, "scale": scale, "late": 1}
    dv = _chunks("outputs", k_back, q_back, do_back, g_back, slopes, **back)
    rest_q, rest_k = (cupy.empty((*lead, *q.shape[-2:]), q.dtype) for _ in range(2))
    dq = _chunks("slopes", do, v, k, g, kept.states, rest_q, lead=lead, scale=scale)
    dk = _chunks("slopes", v_back, do_back, q_back, g_back, slopes, rest_k, **back)
    dg = _gates(q, k, g, rest_q, rest_k, dots, lead=lead, scale=scale)
    grads = (summed(x, like) for x, like in ((dq, q), (dk, k), (dv, v)))
    return *grads, dg, None if S0 is None else dS0


def _states(k, v, g, S0, *, lead, late=0, scale=1.0, other=None):
    """The states before every chunk in 16 bits, and the last one; with `other`, what chunks begin with times them.

    With `late` the arrays run backwards, decays act a step later, and the last state is times `scale`.
    """
    length, keys, values = k.shape[-2], k.shape[-1], v.shape[-1]
    rows, chunks, width = math.prod(lead), -(-length // _STEPS), _slice(values)
    (_, k, v, g, S0), layout = placed(lead, length, (None, k, v, g, S0), 1)
    tiles = -(-keys // _TILE) * -(-values // width)
    kept = cupy.empty((*lead, chunks, keys, values), k.dtype)
    last = cupy.empty((*lead, keys, values), np.float32)
    dots = None if other is None else cupy.empty((-(-values // width), *lead, chunks, keys), np.float32)
    segment = chunks if chunks <= _WHOLE else _SEGMENT
    segments = -(-chunks // segment)
    told = _told(length, keys, values, late=late, segment=segment, scale=scale)
    macros = ("SLICE", width), ("PACKED", int(all(map(packed, (k, v, g)))))
    stage = 2 * _STEPS * (_TILE + width + 2 * _PAD) + 4 * _STEPS * _TILE
    shared = 2 * stage + 4 * 4 * _TILE

    def walk(segments: int, *pointers: Any) -> None:
        code = _kernel("gated_states.cu", "states", k.dtype.name, macros, shared)
        code((segments * rows * tiles,), (_THREADS,), (layout, k, v, g, *pointers, told), shared_mem=shared)

    starts = None
    if segments > 1:
        starts, decays = cupy.empty(segments * last.size, np.float32), cupy.empty(segments * rows * keys, np.float32)
        walk(segments - 1, None, None, None, None, starts, decays, None, None)
        carry = kernel("gated_states.cu", "carry", k.dtype.name, *macros)
        carry((-(-last.size // 128),), (128,), (layout, starts, decays, S0, segments, keys * values, values))
    walk(segments, S0, starts, kept, last, None, None, other, dots)
    return (kept, last) if dots is None else (kept, last, dots)


def _chunks(name, q, k, v, g, kept, *rest, lead, scale, late=0):
    """All chunks side by side: `outputs` or `slopes`; with `late`, the arrays run backwards and the results do not."""
    length = q.shape[-2]
    (q, k, v, g), layout = placed(lead, length, (q, k, v, g), 0)
    inner, outer = q.shape[-1], v.shape[-1]
    wide, width = -(-inner // 64) * 64, _slice(outer) if inner <= 128 else 64
    o = cupy.empty((*lead, length, outer), q.dtype)
    keys, values = (inner, outer) if name == "outputs" else (outer, inner)
    told = _told(length, keys, values, late=late, scale=scale)
    macros = ("WIDE", wide), ("SLICE", width), ("PACKED", int(all(map(packed, (q, k, v, g)))))
    own, others = wide + _PAD, width + _PAD
    numbers = 2 * _STEPS * own + wide * others  # those of the struct ``Chunk``
    if name == "slopes":
        numbers = 2 * _STEPS * (own + others) + width * own
    shared = 2 * numbers + 4 * 4 * (wide if name == "outputs" else width)
    code = _kernel(
        "gated_attention.cu" if name == "outputs" else "gated_attention_back.cu", name, q.dtype.name, macros, shared
    )
    grid = math.prod(lead) * -(-length // _STEPS) * -(-outer // width)
    threads = _THREADS if name == "outputs" else 2 * _THREADS
    code((grid,), (threads,), (layout, q, k, v, g, kept, o, *rest, told), shared_mem=shared)
    return o


def _gates(q, k, g, dq, dk, dots, *, lead, scale):
    """dg, from <S, dS> where chunks begin, q dq and k dk."""
    length, keys = q.shape[-2:]
    (q, k, _, g), layout = placed(lead, length, (q, k, None, g), 0)
    dg, whole = cupy.empty(dq.shape, np.float32), all(map(packed, (q, k, g)))
    code = kernel("gated_attention_back.cu", "gates", q.dtype.name, ("WIDE", 64), ("SLICE", 64), ("PACKED", int(whole)))
    threads = dots[0].size // (2 if whole else 1)
    told = np.int32(keys), dots.shape[0], float(scale)
    code((-(-threads // 128),), (128,), (layout, q, k, g, dq, dk, dots, dg, *told))
    return dg


def _slice(columns: int) -> int:
    return 64 if columns <= 64 else 128


def _told(length: int, keys: int, values: int, *, late: int, segment: int = 0, scale: float = 1.0) -> np.ndarray:
    """The struct ``Pass``. Chunks begin at the same steps in both directions: backwards the first is what is left."""
    head = (length - 1) % _STEPS + 1 if late else min(length, _STEPS)
    return np.array([(keys, values, head, late, late, segment, scale)], _PASS).view(f"V{_PASS.itemsize}")


def _kernel(source: str, name: str, dtype: str, macros: Any, shared: int) -> Any:
    code = kernel(source, name, dtype, *macros)
    if code.max_dynamic_shared_size_bytes < shared:
        code.max_dynamic_shared_size_bytes = shared
    return code
