"""Block scans on the GPU: small matrices in tiles that share a row, larger ones in a loop over time.

How a row is cut follows from its length, the matrices' size and the dtype alone: its bits do not depend on the batch.
"""

import math
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.layout import Strides, layout, spread, strides

_LARGEST = 336  # bytes of a step that a thread holds in registers: 8 rows of float32, 6 of float64, 4 of complex128
_GROUP = 16
_SHARED, _MEMORY = 47_800, 220_000  # bytes of shared memory a block may have, and of a multiprocessor
_INNER = (2, 1, 1, 2, 0, 1)  # axes of a step of A, b, h, dA, reset and h0
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
    """The tile of matrices of n rows: as many warps and blocks as fit, and pieces as long as leave room for them."""
    step, numbers = (n * n + (2 if pullback else 1) * n) * itemsize, max(1, itemsize // 4)
    registers = {1: 48, 2: 64, 3: 96, 4: 126 if pullback else 102}.get(n, 255)  # of a thread; fewer would spill
    maps = (n * n + n) * 16
    for chunk, least in ((8, 2), (4, 2), (2, 2), (2, 1), (1, 1)):
        chunk -= n % 2 and chunk > 1  # see slab.cuh
        fits = _SHARED // (32 * (chunk * step + (48 if pullback else 32)) + maps)
        if fits >= least:
            break
    warps = max(1, min(4, fits))
    shared, threads = warps * (32 * (chunk * step + 32) + maps), 32 * (warps + 1)  # one more looks back
    return Tile(chunk, warps, max(1, min(_MEMORY // shared, 65536 // (threads * min(255, registers * numbers)), 8)))


def memory_of(n: int, compute: int, rows: int, tiles: int) -> int:
    """Bytes that blocks tell each other through (lookback.cuh): two for each of a map and of a state."""
    return 2 * (tiles + tiles // _GROUP + 1) * rows * (n * n + 2 * n) * compute


class _Plan(NamedTuple):
    run: Any
    grid: tuple[int]
    block: tuple[int]
    layout: np.ndarray
    memory: int  # bytes, zeros to begin with
    rest: tuple[Any, ...]  # arguments


_plans: dict[tuple[object, ...], _Plan | None] = {}


def _launch(out: Array, arrays: tuple[Array | None, ...], last: Array | None, reverse: bool, pullback: bool) -> None:
    """Run on `arrays`, in the order of layout.OPERANDS without `out`, which is the result of `b`'s shape."""
    arrays = A, b, h, dA, reset, h0 = tuple(map(_in_grains, arrays, _INNER))
    places = (None if x is None else (x.shape, x.strides, x.data.ptr & 15) for x in arrays)
    key = (out.shape, out.dtype, reverse, pullback, out.data.device_id, *places)
    if key not in _plans:
        if len(_plans) > 10_000:
            _plans.clear()
        _plans[key] = _plan(out, arrays, reverse, pullback)
    plan = _plans[key]
    if plan is None:
        _launch(out, _copies(out, arrays), last, reverse, pullback)
        return
    memory = None
    if plan.memory:
        memory = cupy.empty(plan.memory, np.uint8)
        memory.data.memset_async(0, plan.memory)
    plan.run(plan.grid, plan.block, (plan.layout, A, b, h, out, dA, reset, h0, last, memory, *plan.rest))


def _plan(out: Array, arrays: tuple[Array | None, ...], reverse: bool, pullback: bool) -> _Plan | None:
    """Kernel, grid and layout; None for views that do not fold to six batch axes."""
    (length, n), batch, compute = out.shape[-2:], out.shape[:-2], accum_dtype(out.dtype)
    places = [_place(x, inner, batch, length) for x, inner in zip(arrays[:-1], _INNER[:-1], strict=True)]
    places.insert(3, _place(out, 1, batch, length))
    small = (n * n + n) * compute.itemsize <= _LARGEST
    own = tile(n, out.dtype.itemsize, pullback) if small else Tile(length, 1, 1)
    warps = min(own.warps, -(-length // (32 * own.chunk)))
    steps = 32 * warps * own.chunk if small else length
    struct = layout(batch, length, steps, reverse, [*places, _place(arrays[-1], 1, batch, None)])
    if struct is None:
        return None
    rows, tiles = out.size // (length * n), -(-length // steps)
    macros = (("PULLBACK", int(pullback)), ("SLOPES", int(arrays[3] is not None)))
    if not small:
        run = kernel("block_wide.cu", "scan", out.dtype.name, *macros)
        states = 2 * rows * n * compute.itemsize
        return _Plan(run, (min(rows, _GRID),), (min(256, -(-n // 32) * 32),), struct, states, (np.int64(n),))
    sizes = (("CHUNK", own.chunk), ("WARPS", own.warps), ("BLOCKS", own.blocks), ("GROUP", _GROUP))
    resets = ("RESETS", int(arrays[4] is not None))
    run = kernel("block_scan.cu", "scan", out.dtype.name, ("N", n), *macros, resets, *sizes)
    memory = memory_of(n, compute.itemsize, rows, tiles) if tiles > 1 else 0
    return _Plan(run, (rows * tiles,), (32 * (warps + (tiles > 1)),), struct, memory, ())


def _copies(out: Array, arrays: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
    """Where the views themselves will not do: C-contiguous copies of what was broadcast."""
    A, *rest = arrays
    whole = None if A is None else cupy.broadcast_to(A, (*out.shape[:-2], *A.shape[-3:]))
    return tuple(None if x is None else cupy.ascontiguousarray(x) for x in (whole, *rest))


def _in_grains(x: Array | None, inner: int) -> Array | None:
    """`x`, copied if its `inner` last axes are not in one piece, or a step's elements lie across grains (slab.cuh)."""
    if x is None or not inner:
        return x
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
