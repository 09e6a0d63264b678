"""`lfilter`, `sosfilt` and `dlsim` against scipy.signal, the same dtype and the same process."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.signal

import linscan
from benchmarks.harness import Row, check, compare


def _filters(dtype: str) -> dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]]:
    b, a = (v.astype(dtype) for v in scipy.signal.butter(4, 0.2))
    sos = scipy.signal.butter(8, 0.2, output="sos").astype(dtype)
    return {
        "`lfilter` order 4": (lambda x, **k: linscan.lfilter(b, a, x, **k), lambda x: scipy.signal.lfilter(b, a, x)),
        "`sosfilt` order 8": (lambda x, **k: linscan.sosfilt(sos, x, **k), lambda x: scipy.signal.sosfilt(sos, x)),
    }


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float64"):
        x = rng.standard_normal((64, 1 << 18)).astype(dtype)
        for name, (ours, theirs) in _filters(dtype).items():
            check(name, ours(x[:, :2000]), theirs(x[:, :2000]), 1e-4 if dtype == "float32" else 1e-12)
            yield from _signals(f"{name} {dtype}", x, ours, theirs)
    yield from _systems(rng)


def _signals(name: str, x: np.ndarray, ours: Callable[..., Any], theirs: Callable[..., Any]) -> Iterator[Row]:
    one, two, peer = compare(lambda: ours(x, workers=1), lambda: ours(x), lambda: theirs(x))
    yield Row(f"{name} (64, 2¹⁸)", "scipy.signal", two, peer, 4, faster=True)
    yield Row(f"{name} (64, 2¹⁸), one thread", "scipy.signal", one, peer, 2, faster=True)
    impulse, row = np.zeros_like(x), x[0].copy()
    impulse[:, 0] = 1
    tail, normal = compare(lambda: ours(impulse), lambda: ours(x))
    yield Row(f"{name}, a tail of subnormals", "normal data", tail, normal, 1.5)
    alone, peer = compare(lambda: ours(row), lambda: theirs(row))
    yield Row(f"{name}, one row of 2¹⁸", "scipy.signal", alone, peer, 1, faster=True)


def _systems(rng: np.random.Generator) -> Iterator[Row]:
    system = (*scipy.signal.tf2ss(*scipy.signal.butter(4, 0.2)), 1.0)
    u = rng.standard_normal(100_000)
    check("dlsim", linscan.dlsim(system, u)[1], scipy.signal.dlsim(system, u)[1], 1e-11)
    ours, peer = compare(lambda: linscan.dlsim(system, u), lambda: scipy.signal.dlsim(system, u))
    yield Row("`dlsim` order 4, 100 000 samples", "scipy.signal", ours, peer, 300, faster=True)
    continuous = scipy.signal.tf2ss(*scipy.signal.butter(4, 1.0, analog=True))
    times = 0.1 * np.arange(len(u))
    ours, peer = compare(lambda: linscan.lsim(continuous, u, times), lambda: scipy.signal.lsim(continuous, u, times))
    yield Row("`lsim` order 4, 100 000 samples", "scipy.signal", ours, peer, 100, faster=True)
