"""Rational filters on the GPU: how a row is cut, and the launches that find the chunks' states and filter them."""

import math
from functools import lru_cache
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel, scratch
from linscan.engines.cuda.chunks import Cut, by_row, cut
from linscan.engines.cuda.layout import layout, strides

_FUSED = {4: 8, 8: 8, 16: 4}  # sections that share one pass over the data, by itemsize: as many as registers hold
_THREADS = 128  # of a block of reduce and run; filters.cu has WARPS of 32
_layout = lru_cache(maxsize=4096)(layout)


def lfilter(b: Array, a: Array, x: Array, zi: Array | None, *, axis, workers) -> tuple[Array, Array]:
    """See `linscan.ops.filters.lfilter`; `b`, `a` are (rows, taps), `zi` is (rows, order)."""
    with x.device:
        taps, order = (b.shape[-1], a.shape[-1]), max(b.shape[-1], a.shape[-1]) - 1
        y, state = _results(x, zi, axis, (order,))
        if x.size and order == 0:
            cupy.multiply(x, cupy.expand_dims(b[..., 0], axis), out=y)
        elif x.size:
            macros = (("SECTIONS", 0), ("TAPS_B", taps[0]), ("TAPS_A", taps[1]))
            _filter(x, y, b, a, zi, state, axis, order, macros)
    return y, state


def sosfilt(sos: Array, x: Array, zi: Array | None, *, axis, workers) -> tuple[Array, Array]:
    """See `linscan.ops.sosfilt.sosfilt`; `sos` is (rows, sections, 6), `zi` (rows, sections, 2)."""
    with x.device:
        sections, fused = sos.shape[-2], _FUSED[x.dtype.itemsize]
        y, state = _results(x, zi, axis, (sections, 2))
        for s in range(0, sections if x.size else 0, fused):
            part = slice(s, min(sections, s + fused))
            n = part.stop - s
            start = None if zi is None else zi[..., part, :]
            macros = (("SECTIONS", n), ("TAPS_B", 1), ("TAPS_A", 1))
            _filter(y if s else x, y, sos[..., part, :], None, start, state[..., part, :], axis, 2 * n, macros)
    return y, state


def _results(x: Array, zi: Array | None, axis: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Room for the output and the final state, which is the first one where there is no sample."""
    y = cupy.empty(x.shape, x.dtype)
    state = cupy.empty((*x.shape[:axis], *x.shape[axis + 1 :], *shape), x.dtype)
    if not x.size:
        state[...] = 0 if zi is None else zi
    return y, state


def _filter(
    x: Array, y: Array, b: Array, a: Array | None, zi: Array | None, state: Array, axis: int, order: int, macros: Any
) -> None:
    length, batch = x.shape[axis], x.shape[:axis] + x.shape[axis + 1 :]
    parts = cut(length, order)
    operands = [None if v is None else strides(v, axis) for v in (None, x, None, y, None, None, None)]
    plan = _layout(batch, length, parts.size, False, tuple(operands)) if operands[1] else None
    if plan is None:  # over six batch axes, or strides that are not whole elements
        return _filter(cupy.ascontiguousarray(x), y, b, a, zi, state, axis, order, macros)
    rows, chunks = math.prod(batch), parts.chunks
    (b, b_row), (a, a_row), (zi, zi_row) = ((v, 0) if v is None else by_row(v, len(batch)) for v in (b, a, zi))
    lanes = any(n != 1 for n in x.shape[axis + 1 :])
    macros = (*macros, ("COMPLEX_TAPS", int(b.dtype.kind == "c")), ("LANES", int(lanes)))
    blocks, taps = -(-rows * chunks // _THREADS), (b, a, b_row, a_row)
    states, stop = None, None
    if chunks > 1:
        filters = rows if b_row or a_row else 1
        states, stop = _edges(x, plan, parts, taps, (zi, zi_row), (rows, filters, blocks), order, macros)
    last_row = state.strides[len(batch) - 1] // state.itemsize if batch else 0
    run = kernel("filters.cu", "run", x.dtype.name, *macros)
    run((blocks,), (_THREADS,), (plan, x, y, *taps, states, stop, zi, zi_row, state, last_row, parts.size))
    return None


def _edges(
    x: Array, plan: Any, parts: Cut, taps: Any, start: Any, counts: tuple[int, int, int], order: int, macros: Any
) -> tuple[Array, Array]:
    """The state before every chunk, and where a row goes on in one piece."""
    rows, filters, blocks = counts
    states = scratch(rows * parts.chunks * order, x.dtype)
    matrices = scratch(filters * 2 * order**2 * 2 * taps[0].itemsize, np.uint8)  # two each, in twice the digits
    stop = scratch(rows, np.int64)
    reduce, carry = (kernel("filters.cu", name, x.dtype.name, *macros) for name in ("reduce", "carry"))
    doublings = parts.size.bit_length() - 1, parts.span.bit_length() - 1
    cut_up = plan, x, *taps, states, matrices, filters, parts.size, *doublings
    reduce((filters + blocks,), (_THREADS,), cut_up)
    edges = rows, matrices, filters, states, parts.chunks, parts.span, *start, stop
    carry((min(rows, 2**31 - 1),), (parts.threads,), edges)
    return states, stop
