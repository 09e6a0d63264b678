"""First-order scans on the GPU: which kernel, how it is cut into tiles, and its launch.

What a result's bits depend on (kernel, tile, order) follows from the time axis and its length alone; how many blocks
share a row, and how memory is read, changes no bits and follows from the batch, the strides and the card.
"""

from functools import cache
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda._load import by_value, kernel
from linscan.engines.cuda.columns import on_its_device
from linscan.engines.cuda.layout import OPERANDS, layout, strides
from linscan.engines.cuda.sizes import FORWARD, PULLBACK, SHORT, SUMMED, macros, sizes_of, warps_of
from linscan.engines.reference import two_way as reference


@on_its_device
def scan(a: Array, b: Array, h0: Array | None, *, axis, reverse, reset, out, workers) -> Array:
    """See `linscan.ops.scan.scan`; `a` and `b` are broadcast, of one dtype."""
    apart = out is None or any(_clash(out, x) for x in (a, b, h0, reset))
    h = cupy.empty(b.shape, b.dtype) if apart else out
    if h.size:
        _launch(h, axis, reverse, FORWARD, (a, b, None, h, None, reset, h0), None)
    if out is not None and h is not out:
        out[...] = h
    return h if out is None else out


@on_its_device
def scan_pullback(a: Array, h: Array, h0: Array | None, dh: Array, *, axis, reverse, reset, workers):
    """See `linscan.ops.scan.scan_vjp`: the gradients of `a`, `b` and `h0`, before sums over broadcast axes.

    Where one number of `a` in memory serves all times, its gradient has fewer of them, each the sum over some.
    """
    return _pullback(a, h, h0, dh, axis, not reverse, reset)


@on_its_device
def two_way(a: Array, b: Array, resets: Any) -> Array:
    """See `linscan.engines.reference.two_way.two_way`."""
    if resets is not None or not _both_fit(b):
        return reference.two_way(a, b, resets)
    x = cupy.empty((*b.shape[:-1], 2 * b.shape[-1]), b.dtype)
    out = _apart(x)
    a, b = (cupy.broadcast_to(y, out.shape) for y in (a, b))
    _launch(out, out.ndim - 2, None, FORWARD, (a, b, None, out, None, None, None), None)
    return x


@on_its_device
def two_way_pullback(a: Array, x: Array, dx: Array, resets: Any) -> tuple[Array, Array]:
    """See `linscan.engines.reference.two_way.two_way_pullback`; of `da` as in `scan_pullback`, for each direction."""
    h = _apart(x)
    if resets is not None or not _both_fit(h[0]):
        return reference.two_way_pullback(a, x, dx, resets)
    da, db, _ = _pullback(cupy.broadcast_to(a, h.shape), h, None, _apart(dx), h.ndim - 2, None, None)
    return da, db[0] + db[1]


def _both_fit(b: Array) -> bool:
    return b.size > 0 and _in_lanes(b.shape, b.ndim - 2)


def _apart(x: Array) -> Array:
    """Halves of the last axis as the first of two axes."""
    return cupy.moveaxis(x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2), -2, 0)


def _pullback(a: Array, h: Array, h0: Array | None, dh: Array, axis: int, reverse: bool | None, reset: Array | None):
    wide, db = accum_dtype(h.dtype), cupy.empty(h.shape, h.dtype)
    batch, length = h.shape[:axis] + h.shape[axis + 1 :], h.shape[axis]
    if not h.size:
        return cupy.empty(h.shape, h.dtype), db, cupy.zeros(batch, h.dtype)
    dh0 = cupy.empty(batch, wide)
    if _in_lanes(h.shape, axis) and length > 1 and not a.strides[axis]:
        sizes = sizes_of(True, h.itemsize, True, length)
        sums = cupy.empty((-(-length // (sizes.run * warps_of(sizes, True, length))), *batch), wide)
        _launch(db, axis, reverse, SUMMED, (a, dh, h, db, sums, reset, h0), dh0)
        da = cupy.moveaxis(sums, 0, axis)
    else:
        da = cupy.empty(h.shape, h.dtype)
        _launch(db, axis, reverse, PULLBACK, (a, dh, h, db, da, reset, h0), dh0)
    return da, db, dh0.astype(h.dtype, copy=False)


def _in_lanes(shape: tuple[int, ...], axis: int) -> bool:
    return shape[axis] < SHORT or any(n != 1 for n in shape[axis + 1 :])


def _clash(out: Array, x: Array | None) -> bool:
    """Whether writing `out` could change elements of `x` yet to be read: they overlap without being the same view."""
    if x is None or (x.data.ptr == out.data.ptr and x.strides == out.strides):
        return False
    (low, high), (begin, end) = (cupy.byte_bounds(y) for y in (x, out))
    return low < end and begin < high


class _Plan(NamedTuple):
    run: Any  # compiled, for the device
    grid: tuple[int]
    block: tuple[int]
    layout: Any
    board: int  # bytes


_plans: dict[tuple[object, ...], _Plan | None] = {}


def _launch(
    out: Array, axis: int, reverse: bool | None, way: int, arrays: tuple[Array | None, ...], last: Array | None
) -> None:
    """Run on `arrays`, in the order of OPERANDS, each element of which is written by exactly one thread.

    `reverse` is None for both directions, which the first axis holds.
    """
    places = [None if x is None else (x.strides, x.data.ptr & 15) for x in arrays]
    key = (out.shape, out.dtype, axis, reverse, way, out.data.device_id, *places)
    try:
        plan = _plans[key]
    except KeyError:
        if len(_plans) > 10_000:
            _plans.clear()
        plan = _plans[key] = _plan(out, axis, reverse, way, arrays)
    if plan is None:
        return _launch_copies(out, axis, reverse, way, arrays, last)
    board = _board(plan.board) if plan.board else None
    plan.run(plan.grid, plan.block, (plan.layout, *arrays, last, board))
    return None


def _plan(out: Array, axis: int, reverse: bool | None, way: int, arrays: tuple[Array | None, ...]) -> _Plan | None:
    """Kernel, grid and layout; None for views that do not fold to six batch axes, or with strides of part elements."""
    shape, itemsize, device = out.shape, out.dtype.itemsize, out.data.device_id
    length, batch = shape[axis], shape[:axis] + shape[axis + 1 :]
    in_lanes = _in_lanes(shape, axis)
    sizes = sizes_of(in_lanes, itemsize, way != FORWARD, length)
    warps = warps_of(sizes, in_lanes, length)
    tile = sizes.run * warps
    operands = [
        None if x is None or (name, way) == ("slope", SUMMED) else strides(x, None if name == "first" else axis)
        for name, x in zip(OPERANDS, arrays, strict=True)
    ]
    struct = layout(batch, length, tile, bool(reverse), operands)
    lost = sum(x is not None for x in arrays) - sum(s is not None for s in operands)
    if struct is None or lost != (way == SUMMED):
        return None
    rows, tiles = out.size // length, -(-length // tile)
    blocks = -(-rows // 32) if in_lanes else rows
    split = tiles > 1 and blocks < (2 if in_lanes else 4) * _multiprocessors(device)
    resets = arrays[OPERANDS.index("reset")] is not None
    source = "scan_lanes.cu" if in_lanes else "scan.cu"
    run = kernel(source, "scan", out.dtype.name, *macros(sizes, way, split, resets, reverse))
    grid = blocks * tiles if split else min(blocks, 2**31 - 1)
    slots = (3 * tiles + 2 * -(-tiles // dict(sizes.macros)["GROUP"])) * rows if split else 0
    return _Plan(run.kernel, (grid,), (32 * warps,), by_value(struct), slots * accum_dtype(out.dtype).itemsize)


def _launch_copies(
    out: Array, axis: int, reverse: bool | None, way: int, arrays: tuple[Array | None, ...], last: Array | None
) -> None:
    """Where the views themselves will not do: on C-contiguous copies."""
    whole = tuple(None if x is None else cupy.ascontiguousarray(x) for x in arrays)
    result = whole[OPERANDS.index("out")]
    _launch(result, axis, reverse, way, whole, last)
    if result is not out:
        out[...] = result


@cache
def _multiprocessors(device: int) -> int:
    return cupy.cuda.Device(device).attributes["MultiProcessorCount"]


def _board(size: int) -> Array:
    """The memory blocks hand their states on by (carry.cuh): all ones, which no number looks like."""
    memory = cupy.empty(size, np.uint8)
    memory.data.memset_async(0xFF, size)
    return memory
