"""cuFFT over lines of memory, in place, by cached plans: the last few per device and stream, as a plan owns scratch."""

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


def bins(n: int, dtype: np.dtype) -> int:
    """Numbers in the spectrum of n samples."""
    return n if dtype.kind == "c" else n // 2 + 1


def lines(count: int, n: int, dtype: np.dtype) -> Array:
    """Memory for `count` lines of n samples or their spectrum."""
    return cupy.empty((count, bins(n, dtype) * (1 if dtype.kind == "c" else 2)), dtype)


def transform(x: Array, n: int, inverse: bool) -> None:
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


def _plan(kind: int, n: int, count: int, x: Array, inverse: bool) -> cufft.PlanNd:
    samples, spectrum = x.shape[1], bins(n, x.dtype)
    sides = ((spectrum,), 1, spectrum, (samples,), 1, samples)
    if not inverse:
        sides = (*sides[3:], *sides[:3])
    return cufft.PlanNd((n,), *sides, kind, count, "C", 0, None)
