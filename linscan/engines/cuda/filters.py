"""Rational filters on the GPU: how a row is cut, and the launches that find the chunks' states and filter them."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.chunks import Cut, by_row, cut
from linscan.engines.cuda.layout import layout, strides

_FUSED = {4: 8, 8: 8, 16: 4}  # sections that share one pass over the data, by itemsize: as many as registers hold
_THREADS = 128  # of a block of reduce and run; filters.cu has WARPS of 32
_layout = lru_cache(maxsize=4096)(layout)


class _Filter(NamedTuple):
    """One pass over the data: coefficients and states by row, how many states, and the kernels' variant."""

    b: Array
    a: Array | None
    zi: Array | None
    state: Array
    order: int
    macros: tuple[tuple[str, int], ...]


def lfilter(b: Array, a: Array, x: Array, zi: Array | None, *, axis, workers) -> tuple[Array, Array]:
    """See `linscan.ops.filters.lfilter`; `b`, `a` are (rows, taps), `zi` is (rows, order)."""
    with x.device:
        taps, order = (b.shape[-1], a.shape[-1]), max(b.shape[-1], a.shape[-1]) - 1
        y, state = _results(x, zi, axis, (order,))
        if x.size and order == 0:
            cupy.multiply(x, cupy.expand_dims(b[..., 0], axis), out=y)
        elif x.size:
            macros = (("SECTIONS", 0), ("TAPS_B", taps[0]), ("TAPS_A", taps[1]))
            _launch(_Filter(b, a, zi, state, order, macros), x, y, axis)
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
            one = _Filter(sos[..., part, :], None, start, state[..., part, :], 2 * n, macros)
            _launch(one, y if s else x, y, axis)
    return y, state


def _results(x: Array, zi: Array | None, axis: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Room for the output and the final state, which is the first one where there is no sample."""
    y = cupy.empty(x.shape, x.dtype)
    state = cupy.empty((*x.shape[:axis], *x.shape[axis + 1 :], *shape), x.dtype)
    if not x.size:
        state[...] = 0 if zi is None else zi
    return y, state


def _launch(given: _Filter, x: Array, y: Array, axis: int) -> None:
    length, batch = x.shape[axis], x.shape[:axis] + x.shape[axis + 1 :]
    parts = cut(length, given.order)
    operands = [None if v is None else strides(v, axis) for v in (None, x, None, y, None, None, None)]
    plan = _layout(batch, length, parts.size, False, tuple(operands)) if operands[1] else None
    if plan is None:  # over six batch axes, or strides that are not whole elements
        return _launch(given, cupy.ascontiguousarray(x), y, axis)
    rows, chunks = math.prod(batch), parts.chunks
    by_rows = ((v, 0) if v is None else by_row(v, len(batch)) for v in (given.b, given.a, given.zi))
    (b, b_row), (a, a_row), start = by_rows
    lanes = any(n != 1 for n in x.shape[axis + 1 :])
    macros = (*given.macros, ("COMPLEX_TAPS", int(given.b.dtype.kind == "c")), ("LANES", int(lanes)))
    given = given._replace(macros=macros)
    blocks, taps = -(-rows * chunks // _THREADS), (b, a, b_row, a_row)
    states, stop = None, None
    if chunks > 1:
        filters = rows if b_row or a_row else 1
        states, stop = _edges(given, parts, (plan, x, *taps), start, (rows, filters, blocks))
    last_row = given.state.strides[len(batch) - 1] // x.itemsize if batch else 0
    run = kernel("filters.cu", "run", x.dtype.name, *macros)
    run((blocks,), (_THREADS,), (plan, x, y, *taps, states, stop, *start, given.state, last_row, parts.size))
    return None


def _edges(given: _Filter, parts: Cut, inputs: Any, start: Any, counts: tuple[int, int, int]) -> tuple[Array, Array]:
    """The state before every chunk, and where a row goes on in one piece."""
    (rows, filters, blocks), (x, b), order = counts, inputs[1:3], given.order
    states = cupy.empty(rows * parts.chunks * order, x.dtype)
    matrices = cupy.empty(filters * 2 * order**2 * 2 * b.itemsize, np.uint8)  # two each, in twice the digits
    stop = cupy.empty(rows, np.int64)
    reduce, carry = (kernel("filters.cu", name, x.dtype.name, *given.macros) for name in ("reduce", "carry"))
    doublings = parts.size.bit_length() - 1, parts.span.bit_length() - 1
    cut_up = *inputs, states, matrices, filters, parts.size, *doublings
    reduce((filters + blocks,), (_THREADS,), cut_up)
    edges = rows, matrices, filters, states, parts.chunks, parts.span, *start, stop
    carry((min(rows, 2**31 - 1),), (parts.threads,), edges)
    return states, stop
