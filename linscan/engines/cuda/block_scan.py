"""Block scans on the GPU: small matrices in tiles that share a row, larger ones in a loop over time.

How a row is cut follows from its length, the matrices' size and the dtype alone: its bits do not depend on the batch.
"""

import math
from typing import NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda._load import kernel, scratch
from linscan.engines.cuda.layout import Strides, layout, spread, strides

_LARGEST = 336  # bytes of a step that a thread holds in registers: 8 rows of float32, 6 of float64, 4 of complex128
_GROUP = 32
_SHARED, _MEMORY = 48_500, 220_000  # bytes of shared memory a block may have, and of a multiprocessor
_GRID = 1 << 20  # blocks of the loop over time


class Tile(NamedTuple):
    """Steps of a thread, warps of a block at most, and blocks a multiprocessor should hold."""

    chunk: int
    warps: int
    blocks: int


def block_scan(A: Array, b: Array, h0: Array | None, *, reverse, reset, workers) -> Array:
    """See `linscan.ops.block_scan.block_scan`; `A` has all axes, of size 1 where it broadcasts."""
    h = cupy.empty(b.shape, b.dtype)
    if h.size:
        _launch(h, (A, b, None, None, reset, h0), None, reverse, False)
    return h


def block_scan_pullback(A: Array, h: Array, h0: Array | None, dh: Array, *, reverse, reset, workers):
    """See `linscan.ops.block_scan.block_scan_vjp`: the gradients of `A`, `b` and `h0`, summed over time only."""
    length, n = h.shape[-2:]
    shared = A.shape[-3] == 1 != length
    db, flow = cupy.empty(h.shape, h.dtype), cupy.zeros((*h.shape[:-2], n), accum_dtype(h.dtype))
    dA = None if shared else cupy.empty((*h.shape, n), h.dtype)
    if h.size:
        _launch(db, (A, dh, h, dA, reset, h0), flow, not reverse, True)
    return _product(h, db, h0, reset, reverse) if shared else dA, db, flow


def _product(h: Array, db: Array, h0: Array | None, reset: Array | None, reverse: bool) -> Array:
    """The gradient of one matrix that serves all steps: the sum over t of ``δ[t] h[t-1]^H``."""
    first = cupy.zeros((*h.shape[:-2], 1, h.shape[-1]), h.dtype) if h0 is None else h0[..., None, :]
    order = [h[..., 1:, :], first] if reverse else [first, h[..., :-1, :]]
    before = cupy.concatenate(order, axis=-2)[..., : h.shape[-2], :].astype(accum_dtype(h.dtype), copy=False)
    if reset is not None:
        before = cupy.where(reset[..., None], 0, before)
    return (db.astype(before.dtype, copy=False).swapaxes(-1, -2) @ before.conj())[..., None, :, :]


def tile(n: int, itemsize: int, pullback: bool) -> Tile:
    """The tile of matrices of n rows: as many steps as a block has room for, and as many blocks as fit."""
    step, numbers = (n * n + (2 if pullback else 1) * n) * itemsize, max(1, itemsize // 4)
    registers = min(255, {1: 48, 2: 64, 3: 96, 4: 126}.get(n, 255) * numbers)  # of a thread; fewer would spill
    chunk, pads = 8 if n <= 2 else 4 if n <= 4 else 2, 48 if pullback else 32
    while True:
        for warps in (4, 3, 2, 1):
            shared = 32 * warps * (chunk * step + pads) + warps * (n * n + n) * 16
            if shared <= _SHARED:
                blocks = min(_MEMORY // shared, 65536 // (32 * warps * registers), 8)
                return Tile(chunk, warps, max(1, blocks))
        chunk //= 2


def memory_of(n: int, compute: int, rows: int, tiles: int) -> int:
    """Bytes that blocks tell each other through (lookback.cuh): two for each of a map and of a state."""
    return 2 * (tiles + tiles // _GROUP + 1) * rows * (n * n + 2 * n) * compute


def _launch(out: Array, arrays: tuple[Array | None, ...], last: Array | None, reverse: bool, pullback: bool) -> None:
    """Run on `arrays`, in the order of layout.OPERANDS without `out`, which is the result of `b`'s shape."""
    A, b, h, dA, reset, h0 = arrays
    (length, n), batch = out.shape[-2:], out.shape[:-2]
    A, b, h, dA, h0 = (_in_grains(x, inner) for x, inner in ((A, 2), (b, 1), (h, 1), (dA, 2), (h0, 1)))
    places = [_place(x, inner, batch, length) for x, inner in ((A, 2), (b, 1), (h, 1), (out, 1), (dA, 2), (reset, 0))]
    small = (n * n + n) * accum_dtype(out.dtype).itemsize <= _LARGEST
    own = tile(n, out.dtype.itemsize, pullback) if small else Tile(length, 1, 1)
    warps = min(own.warps, -(-length // (32 * own.chunk)))
    steps = 32 * warps * own.chunk if small else length
    struct = layout(batch, length, steps, reverse, [*places, _place(h0, 1, batch, None)])
    if struct is None:  # more than six axes
        _launch(out, _copies(out, arrays), last, reverse, pullback)
        return
    compute, rows, tiles = accum_dtype(out.dtype), out.size // (length * n), -(-length // steps)
    macros = (("PULLBACK", int(pullback)), ("SLOPES", int(dA is not None)))
    given = (struct, A, b, h, out, dA, reset, h0, last)
    if not small:
        run = kernel("block_wide.cu", "scan", out.dtype.name, *macros)
        threads = min(256, -(-n // 32) * 32)
        run((min(rows, _GRID),), (threads,), (*given, scratch(2 * rows * n, compute), np.int64(n)))
        return
    sizes = (("CHUNK", own.chunk), ("WARPS", own.warps), ("BLOCKS", own.blocks), ("GROUP", _GROUP))
    resets = ("RESETS", int(reset is not None))
    run = kernel("block_scan.cu", "scan", out.dtype.name, ("N", n), *macros, resets, *sizes)
    run((rows * tiles,), (32 * warps,), (*given, _board(n, compute.itemsize, rows, tiles)))


def _copies(out: Array, arrays: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
    """Where the views themselves will not do: C-contiguous copies of what was broadcast."""
    A, *rest = arrays
    whole = None if A is None else cupy.broadcast_to(A, (*out.shape[:-2], *A.shape[-3:]))
    return tuple(None if x is None else cupy.ascontiguousarray(x) for x in (whole, *rest))


def _board(n: int, compute: int, rows: int, tiles: int) -> Array | None:
    """The memory that tiles of one row hand states on by; a row of one tile needs none."""
    if tiles == 1:
        return None
    memory = scratch(memory_of(n, compute, rows, tiles), np.uint8)
    memory.data.memset_async(0, memory.nbytes)
    return memory


def _in_grains(x: Array | None, inner: int) -> Array | None:
    """`x`, copied if its `inner` last axes are not in one piece, or a step's elements lie across grains (slab.cuh)."""
    if x is None:
        return None
    size = x.dtype.itemsize
    step = math.prod(x.shape[x.ndim - inner :]) * size
    grain = next(g for g in (16, 8, 4, 2) if step % g == 0)
    dense = x.strides[-1] == size and (inner == 1 or x.strides[-2] == x.shape[-1] * size)
    aligned = x.data.ptr % grain == 0 and all(s % grain == 0 for s in x.strides[: x.ndim - inner])
    return x if dense and aligned else cupy.ascontiguousarray(x)


def _place(x: Array | None, inner: int, batch: tuple[int, ...], length: int | None) -> Strides | None:
    """The strides of `x` without its `inner` last axes. Time of size 1 serves all steps; no `length`, no time."""
    if x is None:
        return None
    outer = x[(..., *(0,) * inner)]
    axis = None if length is None else outer.ndim - 1
    own = strides(outer, axis)
    if own is not None and axis is not None and outer.shape[axis] == 1 != length:
        own = own._replace(time=0)
    return None if own is None else spread(own, outer.shape, axis, batch)
