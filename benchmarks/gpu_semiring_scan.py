"""The log-space scans on the GPU: every array must pass through memory once."""

from collections.abc import Iterator

import cupy
import numpy as np

import linscan
from benchmarks.gpu import Row, check, random, timed

_SHAPES = [((8, 1536, 16384), -1), ((8, 4096, 1536), 1), ((1, 8, 1 << 18), -1)]
_AFFINE = "__device__ Element combine(Element f, Element g) { return {g.x0 * f.x0, g.x0 * f.x1 + g.x1}; }"


def rows() -> Iterator[Row]:
    for shape, axis in _SHAPES:
        yield from _measure(shape, axis)


def _measure(shape: tuple[int, ...], axis: int) -> Iterator[Row]:
    a, b, v = -random(shape, np.float32), random(shape, np.float32), random(shape, np.float32)
    some = (slice(-1, None), slice(-2, None)) if axis == -1 else (slice(-1, None), slice(None), slice(-40, None))
    s_wide, v_wide, w_wide = (cupy.asnumpy(x[some]).astype(np.float64) for x in (b, v, a))
    y, z = linscan.softmax_average(b, v, a, axis=axis)
    with linscan.use_engine("reference"):
        exact = linscan.softmax_average(s_wide, v_wide, w_wide, axis=axis)
        largest = linscan.max_scan(w_wide, s_wide, axis=axis)
    for got, want in zip((y, z), exact, strict=True):
        check(f"softmax_average {shape}", got[some], want, 1e-5)
    check(f"max_scan {shape}", linscan.max_scan(a, b, axis=axis)[some], largest, 1e-6)
    of = f"float32 {shape}, axis {axis}"
    calls = {
        "max_scan": (3, lambda: linscan.max_scan(a, b, axis=axis)),
        "lse_scan": (3, lambda: linscan.lse_scan(a, b, axis=axis)),
        "softmax_average": (5, lambda: linscan.softmax_average(b, v, a, axis=axis)),
    }
    for name, (arrays, call) in calls.items():
        yield Row(f"`{name}` {of}", arrays * a.nbytes, timed([call], 10))
    ms = timed([lambda: linscan.assoc_scan(None, (a, b), axis=axis, cuda=_AFFINE)], 10)
    yield Row(f"`assoc_scan` of affine maps in device code, {of}, with the copies of its elements", 8 * a.nbytes, ms)
