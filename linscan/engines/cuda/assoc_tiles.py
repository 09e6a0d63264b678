"""How scans by any operator are cut into tiles and launched (assoc.cuh): the log-space scans and users' own operators.

What a result's bits depend on (tile, order) follows from the time axis and its length alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import scratch
from linscan.engines.cuda.layout import layout, strides
from linscan.engines.cuda.sizes import SHORT

_SHARED = 47_000  # bytes of shared memory a block may have
_WARPS = 4


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


def cut(in_lanes: bool, narrowest: int, part: int, length: int) -> Cut:
    """The tiles of rows of `length`; the narrowest array's item size and the bytes of an element's part decide."""
    steps = 16 if narrowest == 1 else 8
    run = steps if in_lanes else 32 * steps
    group = 32
    if in_lanes:  # what the tiles before hand on lies in shared memory, for 32 rows
        group = 16
        while group > 1 and 32 * part * (group + _WARPS + 1) > _SHARED:
            group //= 2
    warps = min(_WARPS, -(-length // run))
    sizes = (
        ("LANES", int(in_lanes)),
        ("STEPS", steps),
        ("CHUNK", steps),
        ("ROWS", 1),
        ("WARPS", _WARPS),
        ("GROUP", group),
    )
    return Cut(sizes, run, warps)


def memory_of(part: int, group: int, rows: int, tiles: int) -> int:
    """Bytes that blocks tell each other through (lookback.cuh): two for each of two parts, a map and a state."""
    return 4 * (tiles + tiles // group + 1) * rows * part


def launch(
    compiled: Callable[[tuple[tuple[str, int], ...]], Any], given: Operands, axis: int, reverse: bool, part: int
) -> None:
    """Run on `given`, whose first input has the shape of all; `part` is at least the bytes of an element's part."""
    like = given.inputs[0]
    shape = like.shape  # type: ignore[union-attr]
    length, batch = shape[axis], shape[:axis] + shape[axis + 1 :]
    in_lanes = length < SHORT or math.prod(shape[axis + 1 :]) != 1
    arrays = (*given.inputs, *given.outputs, *given.firsts, given.reset)
    timed = (*given.inputs, *given.outputs)
    sizes = cut(in_lanes, min(x.dtype.itemsize for x in timed if x is not None), part, length)
    places = [None if x is None else strides(x, axis) for x in timed]
    places += [None if x is None else strides(x, None) for x in given.firsts]
    places.append(None if given.reset is None else strides(given.reset, axis))
    struct = layout(batch, length, sizes.run * sizes.warps, reverse, places)
    if struct is None or [p is None for p in places] != [x is None for x in arrays]:
        launch(compiled, _copies(given), axis, reverse, part)
        return
    rows, tiles = math.prod(batch), -(-length // (sizes.run * sizes.warps))
    run = compiled(
        (*sizes.macros, ("RESETS", int(given.reset is not None)), ("REVERSED", int(reverse and not in_lanes)))
    )
    pointers = np.array([0 if x is None else x.data.ptr for x in arrays], np.uint64)
    bundles = -(-rows // 32) if in_lanes else rows
    memory = _board(part, dict(sizes.macros)["GROUP"], rows, tiles)
    run((bundles * tiles,), (32 * sizes.warps,), (struct, pointers.view(f"V{pointers.nbytes}"), memory))


def _copies(given: Operands) -> Operands:
    """Where the views themselves will not do: C-contiguous copies; outputs are contiguous already."""

    def whole(arrays: Sequence[Array | None]) -> tuple[Array | None, ...]:
        return tuple(None if x is None else cupy.ascontiguousarray(x) for x in arrays)

    return Operands(whole(given.inputs), given.outputs, whole(given.firsts), whole([given.reset])[0])


def _board(part: int, group: int, rows: int, tiles: int) -> Array | None:
    """The memory that tiles of one row hand elements on by; a row of one tile needs none."""
    if tiles == 1:
        return None
    memory = scratch(memory_of(part, group, rows, tiles), np.uint8)
    memory.data.memset_async(0, memory.nbytes)
    return memory
