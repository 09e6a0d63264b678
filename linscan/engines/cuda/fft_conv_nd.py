"""Convolutions over up to three axes on the GPU: cuFFT over batches of rows that stay in the cache, planned once.

NaN and inf do not enter transforms, as in fft_conv.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda import cufft
from linscan.engines.cuda._load import by_value, kernel
from linscan.engines.cuda.conv_passes import THREADS, Passes, batches, window_of
from linscan.engines.cuda.conv_sizes import Cut
from linscan.engines.cuda.layout import operands
from linscan.engines.reference import fft_conv_nd as reference

_MOST_AXES = 3
_BOX = np.dtype([("size", "i8", _MOST_AXES), ("step", "i8", _MOST_AXES)])
_SUM = np.dtype([("start", "i8", _MOST_AXES), ("period", "i8", _MOST_AXES)])
_BLOCKS = 1 << 16
_KERNEL_MARK, _SPECTRUM = 4, 5  # as in conv.cuh


class _Problem(NamedTuple):
    """What is to be computed, and by transforms of which lengths."""

    starts: tuple[int, ...]
    circular: tuple[bool, ...]
    n: tuple[int, ...]


def fft_conv_nd(
    u: Array, k: Array, shape: tuple[int, ...], *, starts: tuple[int, ...], circular: tuple[bool, ...], workers: Any
) -> Array:
    """See `linscan.engines.reference.fft_conv_nd`."""
    with u.device:
        dims = len(shape)
        y = cupy.empty((*np.broadcast_shapes(u.shape[:-dims], k.shape[:-dims]), *shape), u.dtype)
        places = (u.shape, u.strides, k.shape, k.strides, shape, u.dtype)
        key = (*places, starts, circular, u.data.device_id)
        if key not in _plans:
            if len(_plans) > 1000:
                _plans.clear()
            n = reference.sizes(u, k, shape, starts, circular)
            _plans[key] = _plan(u, k, y, _Problem(starts, circular, n)) if dims <= _MOST_AXES else None
        plan = _plans[key]
        if plan is None:
            return reference.fft_conv_nd(u, k, shape, starts=starts, circular=circular, workers=workers)
        plan(u, k, y)
        return y


_plans: dict[tuple[object, ...], Callable[[Array, Array, Array], None] | None] = {}


def _plan(u: Array, k: Array, y: Array, p: _Problem) -> Callable[[Array, Array, Array], None] | None:
    """What fills `y`; None for views that do not fold to six batch axes, or with strides of part elements."""
    dims, compute = len(p.n), accum_dtype(y.dtype)
    if any(s % x.dtype.itemsize for x in (u, k) for s in x.strides):
        return None
    leads = u.shape[:-dims], k.shape[:-dims]
    signals, kernels = (math.prod(lead) for lead in leads)
    bins = cufft.bins(p.n, compute)
    rows = [x[(..., *(0,) * dims)] for x in (u, k, y)] + [cupy.empty(lead, np.uint8) for lead in leads]
    struct = operands(y.shape[:-dims], 1, *((x, None) for x in (*rows, None)))
    own = operands(leads[1], 1, *((x, None) for x in (rows[1], None, None, rows[4])))
    if struct is None or own is None:
        return None
    batch = struct["operand"]["batch"]
    batch[0, _SPECTRUM] = bins * batch[0, _KERNEL_MARK]  # both lie kernel after kernel
    boxes, total, found = [_box(x.shape[-dims:], x) for x in (u, k, y)], int(struct["rows"][0]), _sum(p)
    numbers = bins // math.prod(p.n[:-1]) * (1 if compute.kind == "c" else 2)  # along the last axis
    padded, dtype = _box((*p.n[:-1], numbers)), y.dtype.name
    gathers, parts = [], []
    for _, part in batches(_window(p.n, kernels), compute):
        begin, count = int(part["begin"][0]), int(part["count"][0])
        gathers.append((slice(begin, begin + count), _over(padded, "pad", dtype, part, own, part, boxes[1], padded)))
    for _, part in batches(_window(p.n, total), compute):
        count = int(part["count"][0])
        gather = _over(padded, "pad", dtype, part, struct, part, boxes[0], padded)
        multiply = Passes(dtype).prepared("multiply", -(-bins // (4 * THREADS)) * count, struct, part)
        scatter = _over(boxes[2], "window", dtype, part, struct, part, padded, boxes[2], found)
        parts.append((count, gather, multiply, scatter))
    mend = _launch("mend", dtype, min(total, 4096), struct, *boxes, found)

    def run(u: Array, k: Array, y: Array) -> None:
        marks, spectra = cupy.zeros(signals + kernels, np.uint8), cufft.lines(kernels, p.n, compute)
        for rows, gather in gathers:
            gather(k, spectra[rows], marks[signals:])
            cufft.transform(spectra[rows], p.n, False)
        memory = cufft.lines(parts[0][0], p.n, compute)
        for count, gather, multiply, scatter in parts:
            x = memory[:count]
            gather(u, x, marks)
            cufft.transform(x, p.n, False)
            multiply(x, spectra, np.int64(bins))
            cufft.transform(x, p.n, True)
            scatter(x, y)
        mend(u, k, y, marks, marks[signals:])

    return run


def _launch(name: str, dtype: str, grid: int, *structs: np.ndarray) -> Callable[..., None]:
    """A launch of conv_nd.cu that wants the arguments after its structs."""
    code, blocks = kernel("conv_nd.cu", name, dtype), (max(1, min(grid, _BLOCKS)),)
    first = tuple(map(by_value, structs))
    return lambda *args: code(blocks, (THREADS,), (*first, *args))


def _over(box: np.ndarray, name: str, dtype: str, part: np.ndarray, *structs: np.ndarray) -> Callable[..., None]:
    """The same, with a warp to each line of `box` in every row of a batch."""
    lines = int(part["count"][0]) * int(box["size"][0, :2].prod())
    return _launch(name, dtype, -(-lines // (THREADS // 32)), *structs)


def _window(n: tuple[int, ...], rows: int) -> np.ndarray:
    size = math.prod(n)
    return window_of(size, size, 0, Cut(size, size, 0, 1, False), rows, False)


def _box(sizes: tuple[int, ...], x: Array | None = None) -> np.ndarray:
    """The struct ``Box`` of conv_nd.cu; steps are of the last axes of `x`."""
    box = np.zeros(1, _BOX)
    box["size"] = 1
    box["size"][0, _MOST_AXES - len(sizes) :] = sizes
    if x is not None:
        box["step"][0, _MOST_AXES - len(sizes) :] = [s // x.dtype.itemsize for s in x.strides[-len(sizes) :]]
    return box


def _sum(p: _Problem) -> np.ndarray:
    result = np.zeros(1, _SUM)
    first = _MOST_AXES - len(p.n)
    result["start"][0, first:] = p.starts
    result["period"][0, first:] = [n if wraps else 0 for n, wraps in zip(p.n, p.circular, strict=True)]
    return result
