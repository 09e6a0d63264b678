"""Sliding-window attention on the GPU: 16-bit arrays on tensor cores, the others in their own arithmetic.

What a row's bits depend on follows from its widths, its dtype and the card, never from the other rows.
"""

import math
from functools import cache
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.layout import operands
from linscan.engines.reference import local_attention as reference

_THREADS, _TILE = 128, 32  # as in local_attention.cuh
_MOST = 256  # numbers of a key or a value
_SIZES = np.dtype([(name, "i8") for name in ("past", "window", "keys", "values", "causal")] + [("scale", "f8")])


def local_attention(q, k, v, g, own, seen, *, window, causal, scale, workers):
    """See `linscan.ops.local_attention.local_attention`; arguments as in the reference."""
    p = _Problem(q, k, v, g, own, seen, window, causal, scale)
    if not p.fits:
        options = {"window": window, "causal": causal, "scale": scale, "workers": workers}
        return reference.local_attention(q, k, v, g, own, seen, **options)
    with q.device:
        o = cupy.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
        total = cupy.empty(q.shape[:-1], accum_dtype(q.dtype))
        tiles, failed = -(-q.shape[-2] // p.queries), None
        if p.tensor:
            failed = cupy.empty(p.rows * tiles, np.uint8)
            p.launch("local_attention_mma.cu", "forward", p.shared_tensor, tiles, o, total, failed)
        p.launch("local_attention.cu", "forward", p.shared, tiles, o, total, failed)
    return o, total


def local_attention_pullback(q, k, v, g, own, seen, o, total, do, *, window, causal, scale, workers):
    """See `linscan.ops.local_attention.local_attention_vjp`; arguments as in the reference."""
    p = _Problem(q, k, v, g, own, seen, window, causal, scale, backward=True)
    if not p.fits:
        options = {"window": window, "causal": causal, "scale": scale, "workers": workers}
        return reference.local_attention_pullback(q, k, v, g, own, seen, o, total, do, **options)
    with q.device:
        do, mean = cupy.ascontiguousarray(do), cupy.empty(total.shape, total.dtype)
        means = kernel("local_attention_back.cu", "means", p.dtype.name, *p.macros)
        means((-(-mean.size // 4),), (_THREADS,), (cupy.ascontiguousarray(o), do, mean, mean.size, o.shape[-1]))
        dq, dk, dv = (cupy.empty(x.shape, x.dtype) for x in (q, k, v))
        sums = [None if g is None else cupy.empty(x.shape[:-1], np.float64) for x in (q, k)]
        broken = [None if g is None else cupy.zeros(x.shape[:-1], np.int32) for x in (q, k)]
        tiles = [-(-x.shape[-2] // p.queries) for x in (q, k)]
        for i, (name, outputs) in enumerate((("queries", (dq, sums[0])), ("keys", (dk, dv, sums[1])))):
            given, failed = (do, total, mean, *outputs), None
            if p.tensor:
                failed = cupy.empty(p.rows * tiles[i], np.uint8)
                p.launch("local_attention_mma_back.cu", name, p.shared_tensor, tiles[i], *given, failed)
            p.launch("local_attention_back.cu", name, p.shared, tiles[i], *given, broken[i], failed)
        dg = None if g is None else _gate_gradient(sums, broken).astype(g.dtype, copy=False)
    return dq, dk, dv, dg


def _gate_gradient(sums: list[Array], broken: list[Array]) -> Array:
    """The sums over the pairs between whose steps a gate lies, from what enters and leaves at queries and keys."""
    flows = []
    for by_queries, by_keys in (sums, broken):
        past = by_keys.shape[-1] - by_queries.shape[-1]
        by_keys[..., past:] += by_queries
        flow = cupy.zeros(by_keys.shape, by_keys.dtype)
        flow[..., 1:] = cupy.cumsum(by_keys, axis=-1, dtype=by_keys.dtype)[..., :-1]
        flows.append(flow)
    return cupy.where(flows[1] != 0, cupy.nan, flows[0])


class _Problem:
    """Arrays as device code takes them, and the sizes it is compiled for."""

    def __init__(self, q, k, v, g, own, seen, window: int, causal: bool, scale: float, backward: bool = False) -> None:
        self.rows, self.length, self.dtype = math.prod(q.shape[:-2]), q.shape[-2], q.dtype
        K, V, size = q.shape[-1], v.shape[-1], accum_dtype(q.dtype).itemsize
        self.fits = self.rows * self.length > 0 and 0 < K <= _MOST and 0 < V <= _MOST
        if not self.fits:
            return
        most = 128 if backward else _MOST
        self.tensor = q.dtype.itemsize == 2 and max(K, V) <= most and _capability(q.data.device_id) >= 80
        wide = 64 if self.tensor else 32
        self.keys, self.values = (-(-n // wide) * wide for n in (K, V))
        narrow = max(self.keys, self.values) <= (64 if backward else 128)
        self.queries = (64 if narrow else 32) * 4 // size
        if self.tensor:
            self.queries = 64
        self.shared, self.shared_tensor = self._shared(size, backward)
        self.fits = self.shared <= _most_shared(q.data.device_id)
        if not self.fits:
            return
        past = k.shape[-2] - self.length
        arrays = [_dense(x.astype(q.dtype, copy=False)) for x in (q, k, v)]
        others = [x if x is None else x.astype(t, copy=False) for x, t in ((g, q.dtype), (own, "i4"), (seen, "i4"))]
        lead = q.shape[:-2]
        self.layout = _layout(lead, self.length, [*arrays, *others])
        if self.layout is None:  # more batch axes than the layout folds
            arrays = [cupy.ascontiguousarray(x) for x in arrays]
            others = [x if x is None else cupy.ascontiguousarray(x) for x in others]
            self.layout = _layout(lead, self.length, [*arrays, *others])
        self.arrays = [*arrays, *others]
        sizes = past, min(window, k.shape[-2] + self.length), K, V, causal, scale
        self.sizes = np.array([sizes], _SIZES).view(f"V{_SIZES.itemsize}")
        flags = [("GATED", int(g is not None)), ("MARKED", int(own is not None))]
        packed = all(x.data.ptr % 16 == 0 and x.shape[-1] % 8 == 0 and _whole(x) for x in arrays)
        flags += [("PACKED", int(packed))] if self.tensor else []
        self.macros = (("QUERIES", self.queries), ("KEYS", self.keys), ("VALUES", self.values), *flags)

    def _shared(self, size: int, backward: bool) -> tuple[int, int]:
        """Bytes of the structs ``Exact`` and ``Tiles``, or of the two called ``Back``."""
        K, V, pad = self.keys, self.values, 16 // size
        exact = self.queries * (K + pad) + _TILE * (K + V + 2 * pad) + self.queries * (_TILE + pad)
        if backward:
            exact += self.queries * (V + pad + _TILE + pad) + 2 * _TILE
        tiles = 64 * (3 * (K + 8) + (3 if backward else 2) * (V + 8)) + (2 * 64 * 2 if backward else 0)
        return exact * size, 2 * tiles

    def launch(self, source: str, name: str, shared: int, tiles: int, *arguments: Any) -> None:
        run = kernel(source, name, self.dtype.name, *self.macros)
        if run.max_dynamic_shared_size_bytes < shared:
            run.max_dynamic_shared_size_bytes = shared
        struct = self.layout, self.sizes
        run((self.rows * tiles,), (_THREADS,), (*struct, *self.arrays, *arguments), shared_mem=shared)


def _layout(lead: tuple[int, ...], length: int, given: list[Array | None]) -> Any:
    time = len(lead)
    wide = [(x if x is None else x[..., 0], time) for x in given[:3]] + [(x, time) for x in given[3:]]
    struct = operands(lead, length, *wide)
    return None if struct is None else struct.view(f"V{struct.dtype.itemsize}")


def _dense(x: Array) -> Array:
    """`x`, copied unless the numbers of a step are neighbours in memory."""
    return x if x.strides[-1] == x.itemsize else cupy.ascontiguousarray(x)


def _whole(x: Array) -> bool:
    """Whether every step of `x` begins at a multiple of 16 bytes."""
    return all(s % 16 == 0 or n == 1 for s, n in zip(x.strides[:-1], x.shape[:-1], strict=True))


@cache
def _capability(device: int) -> int:
    return int(cupy.cuda.Device(device).compute_capability)


@cache
def _most_shared(device: int) -> int:
    return cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]
