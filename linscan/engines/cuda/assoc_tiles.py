"""How scans by any operator are cut into tiles and launched (assoc.cuh): the log-space scans and users' own operators.

What a result's bits depend on (tile, order) follows from the time axis and its length alone.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda.layout import layout, strides
from linscan.engines.cuda.sizes import SHORT

Compiled = Callable[[tuple[tuple[str, int], ...]], Any]

_SHARED = 47_000  # bytes of shared memory a block may have


class Operands(NamedTuple):
    """The arrays of one launch, each broadcast; what comes before the first step has no time axis."""

    inputs: tuple[Array | None, ...]
    outputs: tuple[Array | None, ...]
    firsts: tuple[Array | None, ...]
    reset: Array | None


class Cut(NamedTuple):
    """Macros, and steps of a warp and warps of a block."""

    macros: tuple[tuple[str, int], ...]
    run: int
    warps: int


def cut(in_lanes: bool, narrowest: int, widths: int, part: int, length: int) -> Cut:
    """The tiles of rows of `length`; the narrowest item size, words of a step, and an element's part decide."""
    steps = 16 if narrowest == 1 or widths <= 8 else 8
    run = steps if in_lanes else 32 * steps
    most, group = 4, 32
    if in_lanes:  # what the tiles before hand on lies in shared memory, for 32 rows
        most = group = 8
        while group > 1 and 32 * part * (group + most + 1) > _SHARED:
            group, most = group // 2, max(2, most // 2)
    warps = min(most, -(-length // run))
    sizes = (
        ("LANES", int(in_lanes)),
        ("STEPS", steps),
        ("CHUNK", steps),
        ("ROWS", 1),
        ("WARPS", most),
        ("GROUP", group),
    )
    return Cut(sizes, run, warps)


def memory_of(part: int, group: int, rows: int, tiles: int) -> int:
    """Bytes that blocks tell each other through (lookback.cuh): two for each of two parts, a map and a state."""
    return 4 * (tiles + tiles // group + 1) * rows * part


class _Plan(NamedTuple):
    run: Any
    grid: tuple[int]
    block: tuple[int]
    layout: np.ndarray
    memory: int  # bytes, zeros to begin with


_plans: dict[tuple[object, ...], _Plan | None] = {}


def launch(compiled: Compiled, what: Hashable, given: Operands, axis: int, reverse: bool, part: int) -> None:
    """Run on `given`, whose first input has the shape of all; `part` is at least the bytes of an element's part.

    `compiled` makes the kernel from the macros of its sizes, and always the same one for the same `what`.
    """
    arrays = (*given.inputs, *given.outputs, *given.firsts, given.reset)
    places = (None if x is None else (x.shape, x.strides, x.dtype, x.data.ptr & 15, x.data.device_id) for x in arrays)
    key = (what, axis, reverse, *places)
    if key not in _plans:
        if len(_plans) > 10_000:
            _plans.clear()
        _plans[key] = _plan(compiled, given, axis, reverse, part)
    plan = _plans[key]
    if plan is None:
        launch(compiled, what, _copies(given), axis, reverse, part)
        return
    memory = None
    if plan.memory:
        memory = cupy.empty(plan.memory, np.uint8)
        memory.data.memset_async(0, plan.memory)
    pointers = np.array([0 if x is None else x.data.ptr for x in arrays], np.uint64)
    plan.run(plan.grid, plan.block, (plan.layout, pointers.view(f"V{pointers.nbytes}"), memory))


def _plan(compiled: Compiled, given: Operands, axis: int, reverse: bool, part: int) -> _Plan | None:
    """Kernel, grid and layout; None for views that do not fold to six batch axes, or with strides of part elements."""
    shape = given.inputs[0].shape  # type: ignore[union-attr]
    length, batch = shape[axis], shape[:axis] + shape[axis + 1 :]
    in_lanes = length < SHORT or math.prod(shape[axis + 1 :]) != 1
    timed = (*given.inputs, *given.outputs, given.reset)
    narrowest = min(x.dtype.itemsize for x in timed[:-1] if x is not None)
    sizes = cut(in_lanes, narrowest, sum(max(4, x.dtype.itemsize) for x in given.inputs if x is not None), part, length)
    *places, reset = (None if x is None else strides(x, axis) for x in timed)
    places += [*(None if x is None else strides(x, None) for x in given.firsts), reset]
    struct = layout(batch, length, sizes.run * sizes.warps, reverse, places)
    absent = [x is None for x in (*timed[:-1], *given.firsts, given.reset)]
    if struct is None or [p is None for p in places] != absent:
        return None
    rows, tiles = math.prod(batch), -(-length // (sizes.run * sizes.warps))
    flags = ("RESETS", int(given.reset is not None)), ("REVERSED", int(reverse and not in_lanes))
    bundles = -(-rows // 32) if in_lanes else rows
    split = tiles > 1 and bundles < (2 if in_lanes else 4) * _multiprocessors()
    memory = memory_of(part, dict(sizes.macros)["GROUP"], rows, tiles) if split else 0
    grid = bundles * tiles if split else bundles
    return _Plan(compiled((*sizes.macros, *flags)), (grid,), (32 * sizes.warps,), struct, memory)


def _multiprocessors() -> int:
    return cupy.cuda.Device().attributes["MultiProcessorCount"]


def _copies(given: Operands) -> Operands:
    """Where the views themselves will not do: C-contiguous copies; outputs are contiguous already."""

    def whole(arrays: Sequence[Array | None]) -> tuple[Array | None, ...]:
        return tuple(None if x is None else cupy.ascontiguousarray(x) for x in arrays)

    return Operands(whole(given.inputs), given.outputs, whole(given.firsts), whole([given.reset])[0])
