"""Linear attention on the GPU: 16-bit arrays with one decay a step on tensor cores, all else in array code."""

import math
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel, scratch
from linscan.engines.cuda.layout import operands
from linscan.engines.reference import linear_attention as reference

_THREADS, _STEPS, _PAD = 128, 64, 8  # as in linear_attention.cu
_WHOLE = 8192  # steps of the longest sequence that is not cut
_SEGMENT = 2048  # steps of a segment of a longer one


def linear_attention(q, k, v, g, S0, *, lead, scale, keep, workers):
    """See `linscan.ops.linear_attention`; also returns, if `keep`, the states before every chunk."""
    keys, values, length = q.shape[-1], v.shape[-1], q.shape[-2]
    shape = (*lead, length, values)
    struct = None
    if not keep and q.dtype.itemsize == 2 and 0 < keys <= 256 and (g is None or g.shape[-1] == 1) and math.prod(shape):
        q, k, v = (
            x if x.strides[-1] == x.itemsize or x.shape[-1] == 1 else cupy.ascontiguousarray(x) for x in (q, k, v)
        )
        S0 = None if S0 is None else cupy.ascontiguousarray(S0)
        rows = [(x if x is None else x[..., 0], None if x is None else x.ndim - 2) for x in (q, k, v, g)]
        struct = operands(lead, length, *rows, (None if S0 is None else S0[..., 0, 0], None))
    if struct is None:
        return reference.linear_attention(q, k, v, g, S0, lead=lead, scale=scale, keep=keep, workers=workers)
    with q.device:
        o, S = cupy.empty(shape, q.dtype), cupy.empty((*lead, keys, values), np.float32)
        _run(struct, q, k, v, g, S0, o, S, scale)
    return o, S, None


def _run(struct, q, k, v, g, S0, o, S, scale) -> None:
    rows, length, (keys, values) = int(struct["rows"][0]), o.shape[-2], S.shape[-2:]
    wide, width = -(-keys // 64) * 64, 32 if values <= 32 else 64
    packed = all(_packed(x) for x in (q, k, v))
    macros = ("KEYS", wide), ("SLICE", width), ("DECAYS", int(g is not None)), ("PACKED", int(packed))
    segment = length if length <= _WHOLE else _SEGMENT
    segments, layout = -(-length // segment), struct.view(f"V{struct.dtype.itemsize}")

    def launch(name: str, *arguments: Any) -> None:
        code = kernel("linear_attention.cu", name, q.dtype.name, *macros)
        if code.max_dynamic_shared_size_bytes < _shared(wide, width):
            code.max_dynamic_shared_size_bytes = _shared(wide, width)
        grid = segments * rows * -(-values // width)
        code((grid,), (_THREADS,), (layout, *arguments), shared_mem=_shared(wide, width))

    starts = None
    if segments > 1:
        starts, decays = scratch(segments * S.size, np.float32), scratch(segments * rows, np.float32)
        launch("reduce", k, v, g, starts, decays, keys, values, segment)
        carry = kernel("linear_attention.cu", "carry", q.dtype.name, *macros)
        carry((-(-S.size // 128),), (128,), (layout, starts, decays, S0, segments, keys * values))
    launch("run", q, k, v, g, S0, starts, o, S, keys, values, np.float32(scale), segment)


def linear_attention_pullback(q, k, v, g, S0, states, do, dS, **options: Any) -> tuple[Array | None, ...]:
    """See `linscan.ops.linear_attention.linear_attention_vjp`."""
    return reference.linear_attention_pullback(q, k, v, g, S0, states, do, dS, **options)


def _packed(x: Array) -> bool:
    """Whether every step of `x` begins at a multiple of 16 bytes and holds whole packs of them."""
    return x.data.ptr % 16 == 0 and x.shape[-1] % 8 == 0 and all(s % 16 == 0 for s in x.strides[:-1])


def _shared(keys: int, width: int) -> int:
    """Bytes of the struct ``Shared``."""
    return 2 * (2 * _STEPS * (keys + _PAD) + (2 * _STEPS + keys) * (width + _PAD)) + 8 * _STEPS
