"""Strided operands as device code takes them: batch axes folded to at most six, strides in elements, all in 64 bits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

OPERANDS = ("decay", "input", "before", "out", "slope", "reset", "first")  # the order of layout.cuh
CONSTANT, VECTOR, STAGED = range(3)
_MAX_AXES = 6
_OPERAND = np.dtype([("start", "i8"), ("time", "i8"), ("mode", "i8"), ("batch", "i8", _MAX_AXES)])


def _struct(count: int) -> np.dtype:
    sizes = [("length", "i8"), ("rows", "i8"), ("tiles", "i8"), ("ndim", "i8"), ("size", "i8", _MAX_AXES)]
    return np.dtype([*sizes, ("operand", _OPERAND, count)])


LAYOUT = _struct(len(OPERANDS))


class Strides(NamedTuple):
    """An operand's strides in elements, time apart (0 if it has none), and where its memory begins."""

    batch: tuple[int, ...]
    time: int
    itemsize: int
    misalignment: int  # in bytes, of the address from a multiple of 16


def strides(x: Any, axis: int | None) -> Strides | None:
    """The strides of `x`, whose time axis is `axis`; None if they are not whole elements."""
    size = x.dtype.itemsize
    if any(s % size for s in x.strides):
        return None
    steps = tuple(s // size for s in x.strides)
    time = 0 if axis is None else steps[axis]
    batch = steps if axis is None else steps[:axis] + steps[axis + 1 :]
    return Strides(batch, time, size, x.data.ptr % 16)


def layout(
    batch: tuple[int, ...], length: int, tile: int, reverse: bool, operands: Sequence[Strides | None]
) -> np.ndarray | None:
    """The struct ``Layout`` of layout.cuh, as bytes; None if more than six batch axes are left.

    It has room for the operands of the affine scans, or for more where there are more.
    """
    present = [s for s in operands if s is not None]
    sizes, folded = fold(batch, [s.batch for s in present])
    if len(sizes) > _MAX_AXES:
        return None
    kind = LAYOUT if len(operands) <= len(OPERANDS) else _struct(len(operands))
    result = np.zeros(1, kind)
    struct = result[0]
    struct["length"], struct["tiles"] = length, -(-length // tile)
    struct["rows"], struct["ndim"] = int(np.prod(batch, dtype=np.int64)), len(sizes)
    struct["size"][: len(sizes)] = sizes
    for i, s in enumerate(operands):
        if s is None:
            continue
        steps = folded[present.index(s)]
        operand = struct["operand"][i]
        operand["start"] = (length - 1) * s.time if reverse else 0
        operand["time"] = -s.time if reverse else s.time
        operand["mode"] = mode(s, steps, length, reverse)
        operand["batch"][: len(sizes)] = steps
    # As plain bytes: CuPy asks an array to describe its fields at every launch, which is slow.
    return result.view(f"V{kind.itemsize}")


def operands(batch: tuple[int, ...], length: int, *arrays: tuple[Any, int | None]) -> np.ndarray | None:
    """The struct of (array or None, time axis), broadcast to `batch`; `tiles` is left to set. None as in `layout`."""
    placed: list[Strides | None] = []
    for x, axis in arrays:
        own = None if x is None else strides(x, axis)
        if own is None and x is not None:
            return None
        placed.append(own if own is None else spread(own, x.shape, axis, batch))
    struct = layout(batch, length, 1, False, placed)
    return None if struct is None else struct.view(LAYOUT)


def spread(own: Strides, shape: tuple[int, ...], axis: int | None, batch: tuple[int, ...]) -> Strides:
    """The strides of an array of `shape` as broadcast to `batch`."""
    sizes = shape if axis is None else shape[:axis] + shape[axis + 1 :]
    steps = tuple(0 if n == 1 else s for n, s in zip(sizes, own.batch, strict=True))
    return own._replace(batch=(0,) * (len(batch) - len(steps)) + steps)


def fold(sizes: tuple[int, ...], steps: list[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Drop axes of length 1 and merge neighbours that every operand steps through alike, as one longer axis."""
    kept: list[int] = []
    merged: list[list[int]] = [[] for _ in steps]
    for axis, n in enumerate(sizes):
        if n == 1:
            continue
        if kept and all(m[-1] == s[axis] * n for m, s in zip(merged, steps, strict=True)):
            kept[-1] *= n
            for m, s in zip(merged, steps, strict=True):
                m[-1] = s[axis]
        else:
            kept.append(n)
            for m, s in zip(merged, steps, strict=True):
                m.append(s[axis])
    return kept, merged


def mode(s: Strides, steps: list[int], length: int, reverse: bool) -> int:
    """How a time-last kernel reads or writes this operand: see tiles.cuh."""
    if s.time == 0:
        return CONSTANT
    begin = s.misalignment + (length * s.itemsize if reverse else 0)  # a reversed run ends where the row does
    aligned = begin % 16 == 0 and all(step * s.itemsize % 16 == 0 for step in steps)
    return VECTOR if s.time == 1 and aligned else STAGED
