"""Rational filters on the CPU: which kernel runs, and how rows are shared out between threads."""

import math

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.conv_layout import unmarked
from linscan.engines.cpu.filter_lanes import FUSED, MAX_ORDER, VECTOR_BYTES, cascade, scratch_for
from linscan.engines.cpu.filter_rows import long_filter
from linscan.engines.cpu.pool import parallel_for, resolve_workers

_GRAIN = 1 << 15  # samples times sections a thread must get for its hand-over (about 30 us) to pay


def lfilter(b: Array, a: Array, x: Array, zi: Array | None, *, axis, workers) -> tuple[Array, Array]:
    """See `linscan.ops.filters.lfilter`; `b`, `a` are (rows, taps), `zi` is (rows, order)."""
    order = max(b.shape[-1], a.shape[-1]) - 1
    y, state = _results(x, zi, axis, (order,))
    if x.size and b.dtype.kind != "c" and order <= MAX_ORDER:
        coef = np.concatenate([b, a[..., 1:]], axis=-1)
        taps = b.shape[-1], a.shape[-1] - 1
        _side_by_side(x, y, coef[..., None, :], state[..., None, :], taps, axis, workers)
    elif x.size:
        _one_by_one(x, y, b, a, state, axis, workers)
    return y, state


def sosfilt(sos: Array, x: Array, zi: Array | None, *, axis, workers) -> tuple[Array, Array]:
    """See `linscan.ops.sosfilt.sosfilt`; `sos` is (rows, sections, 6), `zi` (rows, sections, 2)."""
    y, state = _results(x, zi, axis, (sos.shape[-2], 2))
    if x.size and sos.dtype.kind != "c":
        coef = np.concatenate([sos[..., :3], sos[..., 4:]], axis=-1)
        _side_by_side(x, y, coef, state, (3, 2), axis, workers)
    elif x.size:
        for s in range(sos.shape[-2]):
            part = np.ascontiguousarray(state[..., s, :])
            _one_by_one(y if s else x, y, sos[..., s, :3], sos[..., s, 3:], part, axis, workers)
            state[..., s, :] = part
    return y, state


def _results(x: Array, zi: Array | None, axis: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Room for the output, and a state of our own to update."""
    state = np.zeros((*x.shape[:axis], *x.shape[axis + 1 :], *shape), x.dtype)
    if zi is not None:
        state[...] = zi
    return np.empty(x.shape, x.dtype), state


def _side_by_side(x, y, coef, state, taps, axis, workers) -> None:
    if x.dtype.kind == "c":  # a real filter treats the two parts of a complex signal alike, and apart
        for part in ("real", "imag"):
            signal, half = (np.ascontiguousarray(getattr(v, part)) for v in (x, state))
            result = np.empty_like(signal)
            _side_by_side(np.broadcast_to(signal, x.shape), result, coef, half, taps, axis, workers)
            setattr(y, part, result)
            setattr(state, part, half)
        return
    x3, y3, outer, inner = _as_3d(x, y, axis)
    time_last, sections = inner == 1, coef.shape[-2]
    groups, across = (1, outer) if time_last else (outer, inner)
    if time_last:
        x3, y3 = (v.reshape(1, outer, -1) for v in (x3, y3))
    coef, state = (v.reshape(groups, across, -1) for v in (coef, state))
    # Few rows are spread over the threads; one row alone is faster without vectors.
    lanes = VECTOR_BYTES // x.itemsize
    width = min(lanes, -(-groups * across // resolve_workers(workers))) if groups * across > 1 else 1
    sizes = *taps, min(FUSED, sections), lanes if width > 1 else 1
    shape = tuple((0,) * size for size in sizes)
    # After a first short one, tiles begin where vectors are aligned.
    skip = x3.__array_interface__["data"][0] // x.itemsize % lanes
    grain = max(1, _GRAIN // (x.shape[axis] * width * sections))

    def body(lo: int, hi: int) -> None:
        cascade(x3, y3, coef, state, scratch_for(coef, state, sizes[-1]), shape, time_last, skip, width, lo, hi)

    parallel_for(body, groups * -(-across // width), grain=grain, workers=workers)


def _one_by_one(x, y, b, a, state, axis, workers) -> None:
    x3, y3, outer, inner = _as_3d(x, y, axis)
    b, a, state = (v.reshape(outer, inner, v.shape[-1]) for v in (b, a, state))
    grain = max(1, _GRAIN // (x.shape[axis] * max(1, state.shape[-1] // 4)))

    def body(lo: int, hi: int) -> None:
        long_filter(x3, y3, b, a, state, lo, hi)

    parallel_for(body, outer * inner, grain=grain, workers=workers)


def _as_3d(x, y, axis):
    """`x` and `y` as (outer, T, inner), and the two numbers; `x` is copied where no view has that shape."""
    outer, inner = math.prod(y.shape[:axis]), math.prod(y.shape[axis + 1 :])
    shape = outer, y.shape[axis], inner
    return unmarked(x.reshape(shape)), y.reshape(shape), outer, inner
