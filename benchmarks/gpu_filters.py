"""Filters on the GPU: one reading and one writing of the signal would be the floor; rows in chunks read it twice."""

from collections.abc import Callable, Iterator
from typing import Any

import cupy
import cupyx.scipy.signal
import numpy as np
import scipy.signal

import linscan
from benchmarks.gpu import Row, check, timed, timed_eagerly

_TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "complex64": 1e-5}


def rows() -> Iterator[Row]:
    b, a = scipy.signal.butter(4, 0.2)
    sos = scipy.signal.butter(8, 0.2, output="sos")
    for shape, axis, dtype, limits in [
        ((64, 1 << 18), -1, "float32", (0.12, 0.20)),
        ((64, (1 << 18) + 1), -1, "float32", (None, None)),
        ((1 << 18, 64), 0, "float32", (None, None)),
        ((8192, 2048), -1, "float32", (None, None)),
        ((1, 1 << 24), -1, "float32", (None, None)),
        ((64, 1 << 17), -1, "float64", (None, None)),
        ((64, 1 << 17), -1, "complex64", (None, None)),
    ]:
        work = f"{dtype} {shape}, axis {axis}"
        real = np.float64 if dtype == "float64" else np.float32
        x, taps, sections = (
            _signal(shape, dtype),
            (cupy.asarray(b, real), cupy.asarray(a, real)),
            cupy.asarray(sos, real),
        )
        beside = _peers(taps, sections, x) if limits[0] else ("", "")
        yield _row(
            f"`lfilter` order 4 {work}", lambda x, t=taps, d=axis: linscan.lfilter(*t, x, d), x, limits[0], beside[0]
        )
        yield _row(
            f"`sosfilt` order 8 {work}", lambda x, s=sections, d=axis: linscan.sosfilt(s, x, d), x, limits[1], beside[1]
        )
    yield from _systems()


def _signal(shape: tuple[int, ...], dtype: str) -> Any:
    """Normal noise, the same in every run."""
    random = cupy.random.RandomState(0)
    x = random.standard_normal(shape, dtype=np.float64 if dtype == "float64" else np.float32)
    return (x + 1j * x[::-1]).astype(dtype) if dtype == "complex64" else x


def _row(work: str, run: Callable[[Any], Any], x: Any, limit: float | None, peer: str) -> Row:
    wide = run(x.astype(np.complex128 if x.dtype.kind == "c" else np.float64))
    check(work, run(x), cupy.asnumpy(wide), _TOLERANCE[x.dtype.name])
    del wide
    other = x.copy()  # so that the signal is not found in the cache
    return Row(work, 2 * x.nbytes, timed([lambda: run(x), lambda: run(other)]), limit=limit, peer=peer)


def _peers(taps: Any, sections: Any, x: Any) -> tuple[str, str]:
    ours = cupyx.scipy.signal
    filtered = timed_eagerly(lambda: ours.lfilter(*taps, x), 7), timed_eagerly(lambda: ours.sosfilt(sections, x), 7)
    return f"cupyx lfilter {filtered[0]:.3g} ms", f"cupyx sosfilt {filtered[1]:.3g} ms"


def _systems() -> Iterator[Row]:
    system = tuple(cupy.asarray(m, np.float32) for m in scipy.signal.tf2ss(*scipy.signal.butter(4, 0.2)))
    u = _signal((64, 1 << 16, 1), "float32")
    y, x = linscan.dlsim((*system, 1.0), u)[1:]
    exact = linscan.dlsim((*(cupy.asnumpy(m).astype("d") for m in system), 1.0), cupy.asnumpy(u[:2]).astype("d"))
    check("dlsim", x[:2], exact[2], 1e-5)
    ms = timed([lambda: linscan.dlsim((*system, 1.0), u)[1:]])
    yield Row(f"`dlsim` order 4 float32 {u.shape}", u.nbytes + y.nbytes + x.nbytes, ms)
    signal = _signal((64, 1 << 16), "float32")
    slopes = 0.3 * cupy.sin(_signal((64, 1 << 16, 2), "float32"))
    exact = linscan.allpole(cupy.asnumpy(slopes[:2]).astype("d"), cupy.asnumpy(signal[:2]).astype("d"))
    check("allpole", linscan.allpole(slopes, signal)[:2], exact, 1e-5)
    ms = timed([lambda: linscan.allpole(slopes, signal)])
    yield Row(f"`allpole` 2 lags float32 {signal.shape}", slopes.nbytes + 2 * signal.nbytes, ms)
