"""Filters of a few taps on the GPU, for `short_conv` and the direct sums of `fft_conv`: which form, and its launch.

Everything is one sum, ``y[t] = bias + Σ_j w[j] x[first + t - step j]``, x the signal with a state before or after it;
the gradient of the signal is the same sum with the step turned round. Forms differ in speed, not in bits.
"""

from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda._load import by_value, kernel
from linscan.engines.cuda.layout import operands

_SINGLE, _PACKS, _WINDOW = range(3)
_SHORT = 32  # rows shorter than this have lanes along rows, also where time is the dense axis
_REGISTERS = 600  # bytes of them that weights and inputs of a walking thread may fill
_REPEAT, _BATCH = 4, 8  # as in fir.cu and fir_taps.cu
# By itemsize: neighbouring rows of a walking thread, steps it takes at once, blocks that must fit a multiprocessor.
_WALK = {2: (4, 8, 4), 4: (4, 8, 4), 8: (2, 8, 3), 16: (1, 8, 1)}
_WALKERS = 1 << 19  # threads that make walks as long as they may be
_SPAN = np.dtype([(n, "i8") for n in ("samples", "first", "step", "past_first", "past_length", "edge", "taps", "run")])


class Reach(NamedTuple):
    """Which samples the taps of an output meet."""

    axis: int  # of time, in the signal and the result
    step: int  # from tap to tap, into the past if positive
    first: int = 0  # the position of the first output; the signal begins at 0
    past: int = 0  # the position of the first sample of the state
    reverse: bool = False  # a reset separates its own position from the next, instead of the one before
    strict: bool = False  # taps that meet nothing add nothing, even if they are NaN


class _Plan(NamedTuple):
    run: Any
    grid: tuple[int]
    block: tuple[int]
    layout: Any
    span: Any
    tiles: int


_plans: dict[tuple[object, ...], _Plan | None] = {}


def fir(
    u: Array, w: Array, bias: Array | None, past: Array | None, y: Array, reset: Array | None, reach: Reach, conj=False
) -> bool:
    """Fill `y`; False, with nothing done, for views whose axes do not fold to six or with strides of part elements."""
    arrays = (u, w, bias, past, y, reset)
    plan = _planned(_plan_sum, y, arrays, reach, conj)
    if plan is not None and y.size:
        plan.run(plan.grid, plan.block, (plan.layout, plan.span, *arrays))
    return plan is not None


def fir_taps(u: Array, past: Array | None, dy: Array, reset: Array | None, taps: int, reach: Reach) -> Array | None:
    """``dw[…, j] = Σ_t dy[t] conj(x[first + t - step j])`` of every row, and in the last place ``Σ_t dy[t]``."""
    wide = np.dtype(np.complex128 if dy.dtype.kind == "c" else np.float64)
    batch = dy.shape[: reach.axis] + dy.shape[reach.axis + 1 :]
    if not dy.size:
        return cupy.zeros((*batch, taps + 1), wide)
    arrays = (u, None, None, past, dy, reset)
    plan = _planned(_plan_taps, dy, arrays, reach, taps)
    if plan is None:
        return None
    parts = cupy.empty((*batch, plan.tiles, taps + 1), wide)
    plan.run(plan.grid, plan.block, (plan.layout, plan.span, u, past, dy, reset, parts))
    return parts.sum(-2)


def _planned(make: Any, out: Array, arrays: tuple[Any, ...], reach: Reach, extra: int) -> _Plan | None:
    device = cupy.cuda.runtime.getDevice()
    places = [None if x is None else (x.shape, x.strides, x.data.ptr & 15) for x in arrays]
    key = (make, out.dtype, reach, extra, device, *places)
    try:
        return _plans[key]
    except KeyError:
        if len(_plans) > 10_000:
            _plans.clear()
        return _plans.setdefault(key, make(arrays, reach, extra))


def _plan_sum(arrays: tuple[Any, ...], reach: Reach, conj: bool) -> _Plan | None:
    u, w, _, _, y, reset = arrays
    length, taps, itemsize = y.shape[reach.axis], w.shape[-1], y.dtype.itemsize
    struct = _layout(arrays, reach, length)
    if struct is None:
        return None
    along = _along(y, reach.axis)
    plain = reset is None and not reach.strict
    pack, back, phased, blocks, steps = 16 // itemsize, reach.step < 0, False, 1, 1
    if along and plain and taps <= 64 and abs(reach.step) == 1 and _dense(struct, pack, reach, u, y):
        form, macro, phased = _PACKS, taps, not _whole(struct, pack, reach, u, y)
    elif not along and plain and (2 * taps + 8) * accum_dtype(y.dtype).itemsize <= _REGISTERS:
        form, macro = _WINDOW, taps
        pack, steps, blocks = _WALK[itemsize]
        blocks = blocks if taps <= 4 else 1
        if taps > 8 or not _dense_rows(struct, pack, u, y):
            pack, steps, blocks = 1, 8, 1
    else:
        form, macro, pack = _SINGLE, taps if taps <= 8 else 0, 1
    run, warps = 1, 4 if form == _WINDOW else 8
    if form == _WINDOW:
        apart = abs(reach.step)
        walks = _rows(struct) // pack * length // steps
        run = max(1, min(max(4, min(16, walks // _WALKERS)) if taps <= 8 else 16, length // (steps * apart)))
        index = -(-length // (run * steps * apart)) * apart
        tiles = -(-index // warps)
    elif form == _PACKS or along:
        warps = min(8, 1 << (-(-length // (32 * pack)) - 1).bit_length())
        blocks = min(32, 48 // warps) if form == _PACKS and taps <= 4 and itemsize <= 4 else 1
        tiles = -(-(length + (pack - 1) * phased) // (32 * warps * pack * _REPEAT))
    else:
        tiles = -(-length // (warps * _REPEAT))
    macros = {"FORM": form, "TAPS": macro, "PACK": pack, "TIME": along, "BACK": back, "WARPS": warps}
    macros |= {"STEPS": steps, "BLOCKS": blocks, "PHASED": phased}
    macros |= {"RESETS": reset is not None, "STRICT": reach.strict, "CONJUGATE": conj and y.dtype.kind == "c"}
    lines = _rows(struct) if along else -(-_rows(struct) // (32 * pack))
    return _finish("fir", macros, struct, lines, 32 * warps, tiles, arrays, reach, taps, run)


def _plan_taps(arrays: tuple[Any, ...], reach: Reach, taps: int) -> _Plan | None:
    dy, reset = arrays[4], arrays[5]
    length = dy.shape[reach.axis]
    struct = _layout(arrays, reach, length)
    if struct is None:
        return None
    along = _along(dy, reach.axis)
    lanes = 256 if along else 8
    run = max(1, min(8, length // (lanes * _BATCH)))
    tiles = -(-length // (lanes * _BATCH * run))
    macros = {"TIME": along, "RESETS": reset is not None, "STRICT": reach.strict}
    lines = (_rows(struct) if along else -(-_rows(struct) // 32)) * -(-taps // 8)
    return _finish("fir_taps", macros, struct, lines, 256, tiles, arrays, reach, taps, run)


def _finish(name, macros, struct, lines, threads, tiles, arrays, reach: Reach, taps: int, run: int) -> _Plan:
    u, past, y = arrays[0], arrays[3], arrays[4]
    struct["tiles"] = tiles
    span = np.zeros(1, _SPAN)
    memory = 0 if past is None else past.shape[reach.axis]
    span[0] = (u.shape[reach.axis], reach.first, reach.step, reach.past, memory, not reach.reverse, taps, run)
    code = kernel(name + ".cu", name, y.dtype.name, *((key, int(value)) for key, value in macros.items()))
    grid = (min(lines * tiles, 2**31 - 1),)
    return _Plan(code, grid, (threads,), by_value(struct), by_value(span), tiles)


def _layout(arrays: tuple[Any, ...], reach: Reach, length: int) -> np.ndarray | None:
    u, w, bias, past, y, reset = arrays
    batch = y.shape[: reach.axis] + y.shape[reach.axis + 1 :]
    taps_axis = None if w is None else w.ndim - 1
    axes = ((u, reach.axis), (w, taps_axis), (bias, None), (past, reach.axis), (y, reach.axis), (reset, reach.axis))
    return operands(batch, length, *axes)


def _rows(struct: np.ndarray) -> int:
    return int(struct["rows"][0])


def _along(y: Array, axis: int) -> bool:
    return y.strides[axis] == y.dtype.itemsize and y.shape[axis] >= _SHORT


def _aligned(struct: np.ndarray, which: int, pack: int, x: Array, but_last: bool) -> bool:
    """Whether rows (or, `but_last`, packs of neighbouring rows) of `x` begin where a pack may be read."""
    operand, ndim = struct["operand"][0, which], int(struct["ndim"][0])
    steps = operand["batch"][: ndim - but_last]
    return x.data.ptr % (pack * x.dtype.itemsize) == 0 and not (steps % pack).any()


def _dense(struct: np.ndarray, pack: int, reach: Reach, u: Array, y: Array) -> bool:
    """Whether every row's first output and the sample at its position begin at the same place of a pack."""
    signal, result = struct["operand"][0, 0], struct["operand"][0, 4]
    apart = u.data.ptr + reach.first * u.dtype.itemsize - y.data.ptr
    same = apart % (pack * u.dtype.itemsize) == 0 and not ((signal["batch"] - result["batch"]) % pack).any()
    return bool(same and signal["time"] == result["time"] == 1)


def _whole(struct: np.ndarray, pack: int, reach: Reach, u: Array, y: Array) -> bool:
    """Whether that place is the beginning of one."""
    return not reach.first % pack and all(_aligned(struct, i, pack, x, False) for i, x in ((0, u), (4, y)))


def _dense_rows(struct: np.ndarray, pack: int, u: Array, y: Array) -> bool:
    last = int(struct["ndim"][0]) - 1
    if last < 0 or struct["size"][0, last] % pack:
        return False
    for i, x in ((0, u), (4, y)):
        operand = struct["operand"][0, i]
        if operand["batch"][last] != 1 or operand["time"] % pack or not _aligned(struct, i, pack, x, True):
            return False
    return True
