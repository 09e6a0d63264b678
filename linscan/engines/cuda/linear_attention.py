"""Linear attention on the GPU: on tensor cores by the kernel of this file where there is one decay a step.

It takes 16-bit arrays, and float32 ones as sums of two float16 numbers (single_attention.cu). 16-bit arrays with decays
by channel are gated_attention.py's; all else goes step after step.

The pullback is the same kernel three times, with the arguments in other roles and for two of them time backwards; the
head of linear_attention.cu says how.
"""

import math
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda import gated_attention, recurrent, single_sizes
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.head_layout import has_tensor_cores, packed, placed, summed
from linscan.engines.cuda.recurrent_step import linear_attention_step
from linscan.engines.reference import linear_attention as reference

__all__ = ["linear_attention", "linear_attention_pullback", "linear_attention_step"]

_THREADS, _STEPS, _PAD = 128, 64, 8  # as in linear_attention.cu
_PRODUCTS = {"exact": 3, "tf32": 1}  # of tensor cores for one of float32 numbers
_WIDEST = 256  # keys or values of 16-bit arrays that tensor cores take here
_WHOLE = 128  # chunks of the longest sequence that is not cut
_SEGMENT = 64  # chunks of a segment of a longer one
_FINER = 2  # pieces of a segment that are reduced by themselves
_NOTHING, _WRITE, _MULTIPLY = range(3)
_EXTRAS = np.dtype([(name, "i8") for name in ("kept", "dots", "mate", "sums", "head", "backwards")])
_PARTS = np.dtype([(name, "i8") for name in ("dots", "read", "written")])


def linear_attention(q, k, v, g, S0, *, lead, scale, keep, precision, workers):
    """See `linscan.ops.linear_attention`; also returns, if `keep`, what the pullback wants."""
    options = {"lead": lead, "scale": scale, "keep": keep}
    sizes = q.shape[-2], q.shape[-1], v.shape[-1]
    if not math.prod(lead) or not recurrent.fits(*sizes, q.dtype):
        return reference.linear_attention(q, k, v, g, S0, precision=precision, workers=workers, **options)
    vector = g is not None and g.shape[-1] > 1
    if not _is_tiled(q, *sizes[1:], vector, scale):
        return recurrent.linear_attention(q, k, v, g, S0, **options)
    with q.device:
        if vector:
            return gated_attention.linear_attention(q, k, v, g, S0, **options)
        keeps = keep and g is not None  # the states are wanted for dg alone
        kept = cupy.empty((*lead, -(-sizes[0] // _STEPS), *sizes[1:]), q.dtype) if keeps else None
        products, work = _PRODUCTS[precision], _WRITE if keeps else _NOTHING
        done = _run(q, k, v, g, S0, lead=lead, scale=scale, kept=kept, work=work, products=products)
    return done.o, done.S, _Kept(kept, done.starts, products) if keep else None


def _is_tiled(q: Array, keys: int, values: int, vector: bool, scale: float) -> bool:
    """Whether tensor cores take it; the number of heads has no say in it, for bits depend on it."""
    scalable = math.isfinite(1 / scale if scale else math.inf)  # the pullback divides by the scale first
    if q.dtype.itemsize != 2:
        return scalable and not vector and single_sizes.takes(q, keys, values)
    return scalable and max(keys, values) <= _WIDEST and has_tensor_cores(q)


def linear_attention_pullback(q, k, v, g, S0, states, do, dS, *, lead, scale, workers):
    """See `linscan.ops.linear_attention.linear_attention_vjp`."""
    common = {"lead": lead, "scale": scale}
    if isinstance(states, list):
        return reference.linear_attention_pullback(q, k, v, g, S0, states, do, dS, workers=workers, **common)
    if isinstance(states, recurrent.Kept):
        return recurrent.linear_attention_pullback(q, k, v, g, S0, states, do, dS, **common)
    with q.device:
        if isinstance(states, gated_attention.Kept):
            return gated_attention.linear_attention_pullback(q, k, v, g, S0, states, do, dS, **common)
        common["products"] = states.products
        turned = None if S0 is None else S0.swapaxes(-1, -2)
        dq = _run(do, v, k, g, turned, _turned(states.starts), mate=q, **common)
        q_back, k_back, v_back, do_back = (x[..., ::-1, :] for x in (q, k, v, do))
        g_back = None if g is None else g[..., ::-1, :]
        last = dS.astype(np.float32, copy=False) / np.float32(scale)
        work = _NOTHING if g is None else _MULTIPLY
        dv = _run(k_back, q_back, do_back, g_back, last, kept=states.chunks, work=work, back=True, **common)
        last = last.swapaxes(-1, -2)
        dk = _run(v_back, do_back, q_back, g_back, last, _turned(dv.starts), mate=k_back, back=True, **common)
        dg = None if g is None else _gate_gradient(g, dv.dots, dq.sums, dk.sums, scale, lead)
        grads = (summed(x.o, like) for x, like in ((dq, q), (dk, k), (dv, v)))
    return *grads, dg, None if S0 is None else dv.S


def _gate_gradient(g: Array, dots: Array, read: Array, written: Array, scale: float, lead: tuple[int, ...]) -> Array:
    """dg from <S, dS> between chunks and q·dq, k·dk at every step."""
    length = g.shape[-2]
    (g,), layout = placed(lead, length, (g,), 0)
    dg = cupy.empty((*lead, length, 1), np.float32)  # the op drops its last axis by a sum
    parts = np.array([tuple(x.shape[0] for x in (dots, read, written))], _PARTS).view(f"V{_PARTS.itemsize}")
    code = kernel("attention_gates.cu", "gates", "float32")
    blocks = -(-math.prod(lead) * -(-length // _STEPS) // 4)  # of four warps
    code((blocks,), (128,), (layout, g, dots, read, written, dg, float(scale), parts))
    return dg


def _turned(starts: Array | None) -> Array | None:
    """The same states with keys and values in each other's place."""
    return None if starts is None else cupy.ascontiguousarray(starts.swapaxes(-1, -2))


class _Kept(NamedTuple):
    """For the pullback: the states before every chunk as stored, and what enters each segment of a long sequence."""

    chunks: Array | None
    starts: Array | None
    products: int


class _Done(NamedTuple):
    o: Array
    S: Array
    dots: Array | None
    sums: Array | None
    starts: Array | None


def _run(
    q, k, v, g, S0, starts=None, *, lead, scale, products, kept=None, work=_NOTHING, mate=None, back=False
) -> _Done:
    """One pass: outputs, final state and, where asked for, `dots` and `sums` (see ``Extras``).

    With `back` the arrays run backwards and the outputs do not, decays act a step later, and S is times the scale;
    chunks begin where they do forwards.
    """
    (q, k, v, g, mate, S0), layout = placed(lead, q.shape[-2], (q, k, v, g, mate, S0), 1)
    rows, length, keys, values = math.prod(lead), q.shape[-2], q.shape[-1], v.shape[-1]
    single = q.dtype.itemsize == 4
    wide, width = (single_sizes.tile if single else _tile)(keys, values)
    slices, chunks = -(-values // width), -(-length // _STEPS)
    o, S = cupy.empty((*lead, length, values), q.dtype), cupy.empty((*lead, keys, values), np.float32)
    dots = cupy.empty((slices, *lead, chunks), np.float32) if work == _MULTIPLY else None
    shares = width // 16 if single else 1 if wide == 128 else 2  # warps that share out the columns
    sums = cupy.empty((shares * slices, *lead, length), np.float32) if mate is not None else None
    pointers = (0 if x is None else x.data.ptr for x in (kept, dots, mate, sums))
    head = (length - 1) % _STEPS + 1 if back else min(length, _STEPS)
    extras = np.array([(*pointers, head, back)], _EXTRAS).view(f"V{_EXTRAS.itemsize}")
    whole = all(packed(x) for x in (q, k, v, mate) if x is not None)
    flags = {"DECAYS": g is not None, "PACKED": whole, "KEPT": work, "MATED": mate is not None}
    flags |= {"PRODUCTS": products} if single else {}
    macros = [("KEYS", wide), ("SLICE", width), *((name, int(flag)) for name, flag in flags.items())]
    segment = chunks if chunks <= _WHOLE else _SEGMENT
    segments, shared = -(-chunks // segment), (single_sizes.shared if single else _shared)(wide, width)
    source, threads = (
        ("single_attention.cu", single_sizes.THREADS * width) if single else ("linear_attention.cu", _THREADS * shares)
    )

    def launch(name: str, segments: int, shared: int, *arguments: Any) -> None:
        code = kernel(source, name, q.dtype.name, *macros)
        if code.max_dynamic_shared_size_bytes < shared:
            code.max_dynamic_shared_size_bytes = shared
        grid = segments * rows * slices
        code((grid,), (threads,), (layout, *arguments, extras), shared_mem=shared)

    if segments > 1 and starts is None:
        finer, less = (1, shared) if single else (_FINER, _shared_less(wide, width))
        pieces = finer * (segments - 1)
        ends, starts = (cupy.empty((n, *S.shape), np.float32) for n in (pieces, segments))
        decays = cupy.empty(pieces * rows, np.float32)
        launch("reduce", pieces, less, k, v, g, ends, decays, keys, values, segment // finer)
        sizes = np.int32(pieces), np.int32(finer), keys * values
        carry = kernel(source, "carry", q.dtype.name, *macros)
        carry((-(-S.size // 128),), (128,), (layout, ends, decays, S0, starts, *sizes))
    launch("run", segments, shared, q, k, v, g, S0, starts, o, S, keys, values, np.float32(scale), segment)
    return _Done(o, S, dots, sums, starts)


def _tile(keys: int, values: int) -> tuple[int, int]:
    """Keys of a block, all of them, and its values."""
    return -(-keys // 64) * 64, 32 if values <= 32 else 64


def _shared_less(keys: int, width: int) -> int:
    """Bytes of what stands first in the struct ``Shared``: what `reduce` needs of it."""
    return 4 * _STEPS * (keys + width + 2 * _PAD) + 40 * _STEPS


def _shared(keys: int, width: int) -> int:
    """Bytes of the struct ``Shared``."""
    return _shared_less(keys, width) + 2 * (2 * _STEPS * (keys + _PAD) + keys * (width + _PAD)) + 32 * _STEPS + 64
