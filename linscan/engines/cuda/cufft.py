"""cuFFT over lines of memory, or boxes of up to three axes, in place, by cached plans.

The last few plans of each device and stream are kept, as a plan owns scratch.
"""

import math
from collections import OrderedDict
from threading import Lock

import cupy
import numpy as np
from cupy.cuda import cufft

from linscan._arrays import Array
from linscan.engines.cuda.capture import held

_KEPT = 16  # plans; each owns as much memory as the lines it transforms
_plans: OrderedDict[tuple[object, ...], cufft.PlanNd] = OrderedDict()
_lock = Lock()

# By the dtype of the lines: the kind of plan forward and back.
_KINDS = {
    "f": (cufft.CUFFT_R2C, cufft.CUFFT_C2R),
    "d": (cufft.CUFFT_D2Z, cufft.CUFFT_Z2D),
    "F": (cufft.CUFFT_C2C, cufft.CUFFT_C2C),
    "D": (cufft.CUFFT_Z2Z, cufft.CUFFT_Z2Z),
}


Samples = int | tuple[int, ...]  # of a line, or along each axis


def bins(n: Samples, dtype: np.dtype) -> int:
    """Numbers in the spectrum of n samples."""
    return math.prod(_spectrum(n, dtype))


def _spectrum(n: Samples, dtype: np.dtype) -> tuple[int, ...]:
    *before, last = (n,) if isinstance(n, int) else n
    return (*before, last if dtype.kind == "c" else last // 2 + 1)


def lines(count: int, n: Samples, dtype: np.dtype) -> Array:
    """Memory for `count` lines of n samples or their spectrum."""
    return cupy.empty((count, bins(n, dtype) * (1 if dtype.kind == "c" else 2)), dtype)


def transform(x: Array, n: Samples, inverse: bool) -> None:
    """Transform every line of `x` (from `lines`) in place; the inverse lacks its factor 1/n."""
    kind, count = _KINDS[x.dtype.char][inverse], len(x)
    stream = cupy.cuda.get_current_stream()
    key = (kind, n, count, inverse, x.data.device_id, stream.ptr)
    with _lock:
        plan = _plans.pop(key, None) or _plan(kind, n, count, x, inverse)
        _plans[key] = plan
        while len(_plans) > _KEPT:
            _plans.popitem(last=False)
        held(plan).fft(x, x, cufft.CUFFT_INVERSE if inverse else cufft.CUFFT_FORWARD)


def _plan(kind: int, n: Samples, count: int, x: Array, inverse: bool) -> cufft.PlanNd:
    spectrum = _spectrum(n, x.dtype)
    samples = (*spectrum[:-1], spectrum[-1] * (1 if x.dtype.kind == "c" else 2))
    sides = (spectrum, 1, math.prod(spectrum), samples, 1, math.prod(samples))
    if not inverse:
        sides = (*sides[3:], *sides[:3])
    return cufft.PlanNd((n,) if isinstance(n, int) else n, *sides, kind, count, "C", 0, None)
