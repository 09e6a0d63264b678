"""One step of a matrix state, or the few of one token, on the GPU: one launch that reads and writes the state once."""

import math

import cupy
import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda._load import kernel, shared_limit
from linscan.engines.cuda.heads import OPERAND, SIZES, place, raw
from linscan.engines.delta_terms import terms_of
from linscan.engines.reference import dplr_steps
from linscan.engines.reference import linear_attention as reference

_PLAIN, _DPLR, _ONE_KEY, _DELTA, _DELTA_OWN_KEY = range(5)  # RULE of recurrent_step.cu
_BYTES = 16  # of a row of the state a thread reads at once
_WARPS = 8  # as in recurrent_step.cu
_PROBLEM = np.dtype(
    [(name, "i8") for name in ("length", "heads", "rows", "columns")]
    + SIZES
    + [("wide", "i8", 5), ("vector", "i8"), ("scale", "f8")]
    + [(name, OPERAND) for name in ("q", "k", "v", "a", "b", "g", "beta", "first")]
    + [("last", "u8"), ("out", "u8")]
)


def linear_attention_step(q, k, v, g, S, *, lead, scale, workers):
    """See `linscan.engines.reference.linear_attention.linear_attention_step`."""
    if not _fits(k, v, lead):
        return reference.linear_attention_step(q, k, v, g, S, lead=lead, scale=scale, workers=workers)
    return _step(_PLAIN, {"q": q, "k": k, "v": v, "g": g, "first": S}, lead, scale)


def dplr_attention_step(q, k, v, a, b, g, S, *, scale, workers):
    """See `linscan.engines.reference.dplr_steps.dplr_attention_step`."""
    lead = S.shape[:-2]
    if not _fits(k, v, lead):
        return dplr_steps.dplr_attention_step(q, k, v, a, b, g, S, scale=scale, workers=workers)
    arrays = {"q": q, "k": k, "v": v, "a": a, "b": b, "g": g, "first": S}
    return _step(_ONE_KEY if b is None else _DPLR, arrays, lead, scale)


def delta_rule_step(q, k, v, beta, g, w, reset, S, *, scale, workers):
    """The same for the delta rule's own arguments; see `linscan.engines.delta_terms`. A step is never reset."""
    lead = S.shape[:-2]
    if not _fits(k, v, lead):
        return dplr_steps.dplr_attention_step(*terms_of(q, k, v, beta, g, w, reset, S), scale=scale, workers=workers)
    beta = beta.astype(S.dtype, copy=False)[..., None]
    arrays = {"q": q, "k": k, "v": v, "b": w, "g": g, "beta": beta, "first": S}
    return _step(_DELTA if w is None else _DELTA_OWN_KEY, arrays, lead, scale)


def _fits(k: Array, v: Array, lead: tuple[int, ...]) -> bool:
    """Whether there is something to do and a block's shared memory holds the state's rows."""
    rows, size = k.shape[-1], accum_dtype(k.dtype).itemsize
    return math.prod((rows, v.shape[-1], *lead)) > 0 and _shared(rows, 1, size) <= shared_limit(k)


def _shared(rows: int, pack: int, size: int) -> int:
    """Bytes of the struct ``Shared``."""
    rows = -(-rows // _WARPS) * _WARPS
    return size * (32 * pack * (rows + _WARPS) + 5 * rows) + 16


def _step(rule, arrays, lead, scale):
    arrays = {name: x for name, x in arrays.items() if x is not None}
    q, v, g, S = (arrays.get(name) for name in ("q", "v", "g", "first"))
    compute, keys, values = accum_dtype(q.dtype), q.shape[-1], v.shape[-1]
    pack = max(1, _BYTES // compute.itemsize)
    limit = shared_limit(q)
    while pack > 1 and (16 * pack >= values or _shared(keys, pack, compute.itemsize) > limit):
        pack //= 2
    with q.device:
        if S.strides[-2:] != (values * S.itemsize, S.itemsize):
            arrays["first"] = cupy.ascontiguousarray(S)
        new, o = cupy.empty((*lead, keys, values), compute), cupy.empty((*lead, values), q.dtype)
        p = np.zeros(1, _PROBLEM)
        p["length"], p["heads"], p["rows"], p["columns"] = arrays["k"].shape[-2], math.prod(lead), keys, values
        p["scale"] = scale
        alive = place(p, lead, arrays)
        p["wide"] = [name in arrays and arrays[name].dtype == compute for name in ("q", "k", "v", "a", "b")]
        p["vector"], p["last"], p["out"] = g is not None and g.shape[-1] > 1, new.data.ptr, o.data.ptr
        aligned = values % pack == 0 and all(x.data.ptr % 16 == 0 for x in (alive[-1], new))
        macros = {"RULE": rule, "PER": -(-keys // _WARPS), "PACK": pack}
        macros |= {"DECAY": g is not None, "PACKED": aligned}
        code = kernel("recurrent_step.cu", "steps", q.dtype.name, *((name, int(x)) for name, x in macros.items()))
        memory = _shared(keys, pack, compute.itemsize)
        if code.max_dynamic_shared_size_bytes < memory:
            code.max_dynamic_shared_size_bytes = memory
        code((int(p["heads"][0]) * -(-values // (32 * pack)),), (32 * _WARPS,), (raw(p),), shared_mem=memory)
    return o, new
