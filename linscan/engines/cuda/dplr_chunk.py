"""`dplr_attention`, and the delta rule with any decay and key to write along, on tensor cores; see dplr_chunk.cu."""

import math
from typing import NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel, shared_limit
from linscan.engines.cuda.head_layout import has_tensor_cores, packed, placed, summed

_STEPS, _PAD, _SLICE, _WIDEST = 64, 8, 64, 128  # as in the sources
_KEPT = np.dtype([("steps", "u8"), ("states", "u8"), ("wide", "i8")])


class Terms(NamedTuple):
    """S[t] = D S[t-1] + b u^T + k v^T, u = S^T a; S under a is S[t-1] if `early`, else D S[t-1].

    Without k what is written is b (u + v)^T. The b given is to be multiplied with `beta`, if any, the a with `sign`.
    """

    q: Array
    a: Array
    b: Array
    k: Array | None
    v: Array
    beta: Array | None  # (…, T, 1)
    g: Array | None  # (…, T, 1) or (…, T, K)
    early: bool
    sign: float


class Kept(NamedTuple):
    """For the pullback, in the arrays' dtype: U, (row, T, V), and the states before every chunk, (row, chunk, V, K)."""

    steps: Array
    states: Array

    def struct(self) -> np.ndarray:
        values = self.steps.shape[-1]
        return np.array([(self.steps.data.ptr, self.states.data.ptr, values)], _KEPT).view(f"V{_KEPT.itemsize}")


def fits(vectors: tuple[Array | None, ...], v: Array, lead: tuple[int, ...], scale: float, *, keyed: bool) -> bool:
    """Whether tensor cores take these arrays (…, T, K) and values: 16-bit, 128 keys at most, no scale of 0."""
    q, *others = (x for x in (*vectors, v) if x is not None)
    sizes = math.prod(lead), *q.shape[-2:], v.shape[-1]
    if any(x.dtype != q.dtype for x in others) or q.dtype.itemsize != 2:
        return False
    scalable = math.isfinite(scale) and math.isfinite(1 / scale if scale else math.inf)
    fitting = scalable and min(sizes) > 0 and sizes[2] <= _WIDEST and has_tensor_cores(q)
    return fitting and _shared_back(keyed) <= shared_limit(q)


def run(terms: Terms, S0: Array, *, scale: float, keep: bool) -> tuple[Array, Array, Kept | None]:
    """Outputs, final state and, if `keep`, what the pullback needs."""
    call = Call(terms, S0.shape[:-2])
    kept = call.kept() if keep else None
    o, S = call.walk(call.slabs(), terms.v, S0, kept, scale, back=False)
    return o, S, kept


def pullback(terms: Terms, kept: Kept, do: Array, dS: Array, *, scale: float) -> tuple[Array | None, ...]:
    """The gradients of q, a, b, k, v, beta, g and S0; that of a is in b's if they are one array."""
    call = Call(terms, dS.shape[:-2])
    back = call.kept()
    dv, dS0 = call.walk(call.slabs(), do, dS, back, scale, back=True)
    dq, da, db, dk, dbeta, dg = call.gradients(kept, back, do, scale)
    return dq, da, db, dk, summed(dv, terms.v), dbeta, dg, dS0


class Call:
    """The sizes of one call, and the launches."""

    def __init__(self, terms: Terms, lead: tuple[int, ...]):
        (self.length, self.keys), self.values = terms.q.shape[-2:], terms.v.shape[-1]
        self.terms, self.lead, self.rows = terms, lead, math.prod(lead)
        self.chunks, self.wide_keys = -(-self.length // _STEPS), -(-self.keys // 64) * 64
        self.keyed = terms.k is not None
        decays = 0 if terms.g is None else 1 if terms.g.shape[-1] == 1 else 2
        self.macros = [("KEYS", self.wide_keys), ("KEYED", int(self.keyed))]
        self.gates = [("DECAYS", decays), ("EARLY", int(terms.early))]

    def kept(self) -> Kept:
        dtype, wide = self.terms.q.dtype, -(-self.values // 64) * 64
        steps = cupy.empty((self.rows, self.length, wide), dtype)
        return Kept(steps, cupy.empty((self.rows, self.chunks, wide, self.wide_keys), dtype))

    def slabs(self) -> Array:
        """Rows and scores of every chunk: see the struct ``Slab``."""
        x, keys = self.terms, self.wide_keys
        numbers = _STEPS * ((3 + self.keyed) * keys + (2 + 2 * self.keyed) * _STEPS + 2 * 16)
        slabs = cupy.empty(self.rows * self.chunks * (2 * numbers + 4 * (keys + _STEPS)), np.uint8)
        (q, a, k, g, _, b, beta), layout = placed(self.lead, self.length, (x.q, x.a, x.k, x.g, None, x.b, x.beta), 0)
        aligned = all(packed(y) for y in (q, a, b, k, g) if y is not None and (y is not g or y.shape[-1] > 1))
        work = 4 * (4 * 16 * 20 + 4 * keys + 3 * _STEPS)
        shared = 2 * (5 * _STEPS + (_STEPS if self.keyed else 1)) * (keys + _PAD) + work
        macros, arguments = [*self.gates, ("PACKED", int(aligned))], (layout, q, a, b, k, beta, g, slabs)
        tail = np.int32(self.keys), np.float32(x.sign)
        self.launch("dplr_scores.cu", "prepare", macros, self.rows * self.chunks, 256, (*arguments, *tail), shared)
        return slabs

    def walk(self, slabs, v, S, kept: Kept | None, scale: float, *, back: bool) -> tuple[Array, Array]:
        """Through all chunks: outputs and the last state, or the gradients of v and of the first state."""
        o = cupy.empty((*self.lead, self.length, self.values), self.terms.q.dtype)
        last = cupy.empty((*self.lead, self.keys, self.values), np.float32)
        (_, _, v, _, _, S), layout = placed(self.lead, self.length, (None, None, v, None, None, S), 1)
        warps = 8 if self.values > 64 else 4
        met, written = (2, 1) if not back and not self.keyed else (1, 2) if not self.keyed else (2, 2)
        rows = _STEPS * ((met + written) * (self.wide_keys + _PAD) + (2 + 2 * self.keyed) * (_STEPS + _PAD))
        shared = 2 * rows + 2 * _STEPS * (2 * (16 + _PAD) + 16 * warps + _PAD) + 8 * self.wide_keys + 16 * _STEPS
        macros = [("WARPS", warps), ("BACKWARDS", int(back)), ("KEEP", int(kept is not None))]
        macros += [("PACKED", int(packed(v)))]
        struct = np.zeros(1, f"V{_KEPT.itemsize}") if kept is None else kept.struct()
        arguments = layout, slabs, v, S, o, last, np.int32(self.keys), self.values, np.float32(scale), struct
        blocks = self.rows * -(-self.values // (16 * warps))
        self.launch("dplr_chunk.cu", "walk", macros, blocks, 32 * warps, arguments, shared)
        return o, last

    def gradients(self, forth: Kept, back: Kept, do: Array, scale: float) -> tuple[Array | None, ...]:
        """Those of q, a, b, k, beta and g, of every chunk by itself."""
        x, steps, slices = self.terms, (*self.lead, self.length), self.wide_keys // _SLICE
        given = x.q, x.a, x.k, x.g, x.v if self.keyed else None, x.b, x.beta
        (q, a, k, g, v, b, beta), layout = placed(self.lead, self.length, given, 0)
        do = cupy.ascontiguousarray(cupy.broadcast_to(do, (*steps, self.values)))
        grads = [cupy.empty((*steps, self.keys), q.dtype) for _ in range(3 + self.keyed)]
        dq, db, da = grads[:3]
        da, dk = None if x.a is x.b else da, grads[3] if self.keyed else None
        dbeta = None if beta is None else cupy.empty((slices, *steps), np.float32)
        vector = g is not None and g.shape[-1] > 1
        dg = None if g is None else cupy.empty((*steps, self.keys) if vector else (slices, *steps), np.float32)
        aligned = packed(do) and (v is None or packed(v))
        arguments = layout, q, a, b, k, v, beta, g, do, forth.struct(), back.struct(), dq, da, db, dk, dbeta, dg
        tail = np.int32(self.keys), self.values, np.float32(scale), np.float32(x.sign)
        blocks, macros = self.rows * self.chunks * slices, [*self.gates, ("PACKED", int(aligned))]
        shared = _shared_back(self.keyed)
        self.launch("dplr_chunk_back.cu", "gradients", macros, blocks, 256, (*arguments, *tail), shared)
        dg = dg if dg is None or vector else dg.sum(axis=0)[..., None]
        sums = (None if y is None else summed(y, like) for y, like in ((dq, x.q), (da, x.a), (db, x.b), (dk, x.k)))
        return *sums, None if dbeta is None else dbeta.sum(axis=0), dg

    def launch(self, source, name, macros, blocks, threads, arguments, shared) -> None:
        code = kernel(source, name, self.terms.q.dtype.name, *self.macros, *macros)
        if code.max_dynamic_shared_size_bytes < shared:
            code.max_dynamic_shared_size_bytes = shared
        code((blocks,), (threads,), arguments, shared_mem=shared)


def _shared_back(keyed: bool) -> int:
    """Bytes of the struct ``Shared`` of dplr_chunk_back.cu."""
    row = 2 * (_STEPS + _PAD)
    arrays = (13 * _STEPS + (3 * _STEPS if keyed else 3)) * row
    sums = (6 if keyed else 4) * 4 * _STEPS * (_SLICE + 4)
    return max(arrays, sums) + (4 if keyed else 2) * _STEPS * row + 4 * (16 * _SLICE + 8 * _STEPS)
