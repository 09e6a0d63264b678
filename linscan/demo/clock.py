"""Timing linscan against SciPy on the recording itself: warm-up left out, the two taken in turn, medians."""

import importlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import signal as ss
from scipy.linalg import solve_triangular

import linscan
from linscan._arrays import is_cupy, to_host
from linscan.demo.job import Recording, Result, remember

RUNS = 7
COMPARISONS = 7
CHANNELS = 64
_LONGEST = 1 << 15  # samples timed
_SOLVED = 2048  # samples of the memory timed: SciPy's way solves a system for each
_ENOUGH = 1.0  # seconds for one comparison, after its first five runs


class Row(NamedTuple):
    """Median seconds of one piece of work done by linscan and by SciPy, and how far the results differ in norm."""

    work: str
    peer: str
    ours: float
    theirs: float
    difference: float
    runs: int


def _legs_by_solving(u: np.ndarray, order: int) -> np.ndarray:
    """The LegS memory as its equation is written: a triangular solve per sample."""
    A, B = linscan.hippo("legs", order)
    B = B[:, 0]
    x, one = np.zeros(order), np.eye(order)
    for t, value in enumerate(u - u[0], 1):
        x = solve_triangular(one - A / (2 * t), x + (A @ x + 2 * value * B) / (2 * t), lower=True, check_finite=False)
    return x


def _sliding_memory(fs: float, centre: float) -> tuple[np.ndarray | float, ...]:
    """HiPPO-LegT with 4 coefficients over a sliding period: a system in SciPy's form that puts out its state."""
    A, B = linscan.hippo("legt", 4)
    A_bar, B_bar = linscan.discretize(A, B, 2 * centre / fs, "zoh")
    return A_bar, B_bar, np.eye(4), np.zeros((4, 1)), 1 / fs


Work = tuple[str, str, Callable[[], Any], Callable[[], Any]]


def comparisons(recording: Recording, result: Result, xp: Any = np) -> list[Work]:
    """What is timed: (work, SciPy's name for it, ours on arrays of `xp`, theirs)."""
    return [*_filters(recording, result, xp), *_models(recording, result, xp)]


def _filters(recording: Recording, result: Result, xp: Any) -> list[Work]:
    sos, kernel = result.sos, result.kernel
    u, filtered = recording.signal[:_LONGEST], result.filtered[:_LONGEST]
    many_u, many = np.tile(u, (CHANNELS, 1)), np.tile(filtered, (CHANNELS, 1))
    size, again = u.size, f"  {CHANNELS} channels of it"
    our_sos, our_kernel = xp.asarray(sos), xp.asarray(kernel)
    x, many_x, one, more = (xp.asarray(array) for array in (u, many_u, filtered, many))
    return [
        (
            f"sosfilt, order 4, {size} samples",
            "sosfilt",
            lambda: linscan.sosfilt(our_sos, x),
            lambda: ss.sosfilt(sos, u),
        ),
        (again, "sosfilt", lambda: linscan.sosfilt(our_sos, many_x), lambda: ss.sosfilt(sos, many_u)),
        (
            f"fft_conv, kernel of {kernel.size}, {size} samples",
            "fftconvolve",
            lambda: linscan.fft_conv(one, our_kernel),
            lambda: ss.fftconvolve(filtered, kernel)[:size],
        ),
        (
            again,
            "fftconvolve",
            lambda: linscan.fft_conv(more, our_kernel),
            lambda: ss.fftconvolve(many, kernel[None], axes=-1)[:, :size],
        ),
    ]


def _models(recording: Recording, result: Result, xp: Any) -> list[Work]:
    a_bar, w, _ = result.modes
    u, order = recording.signal[:_LONGEST], recording.order
    drive, few = w[:, None] * result.filtered[:_LONGEST], u[:_SOLVED]
    system = _sliding_memory(recording.fs, recording.centre)
    our_system = *(xp.asarray(matrix) for matrix in system[:4]), system[4]
    our_a, our_drive, x, some = (xp.asarray(array) for array in (a_bar[:, None], drive, u, few))

    def modes_by_lfilter() -> np.ndarray:
        return np.stack([ss.lfilter([1.0], [1.0, -a], b) for a, b in zip(a_bar, drive, strict=True)])

    return [
        (
            f"scan, {a_bar.size} complex modes, {u.size} samples",
            "lfilter",
            lambda: linscan.scan(our_a, our_drive),
            modes_by_lfilter,
        ),
        (
            f"dlsim, LegT memory of 4, {u.size} samples",
            "dlsim",
            lambda: linscan.dlsim(our_system, x)[1],
            lambda: ss.dlsim(system, u)[1],
        ),
        (
            f"LegS memory of {order}, {few.size} samples",
            "solve_triangular",
            lambda: remember(some, order, lambda done: None),
            lambda: _legs_by_solving(few, order),
        ),
    ]


def compare(work: str, peer: str, ours: Callable[[], Any], theirs: Callable[[], Any]) -> Row:
    """Median of up to `RUNS` runs each (at least five), taken in turn after one of each to warm up."""
    x, y = ours(), theirs()
    wait = _synchronise if is_cupy(x) else lambda: None
    x = to_host(x)
    gap = float(np.linalg.norm(x - y)) / (float(np.linalg.norm(y)) or 1.0)
    spent: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(spent[0]) < 5 or (len(spent[0]) < RUNS and time.perf_counter() - start < _ENOUGH):
        for function, times in ((ours, spent[0]), (theirs, spent[1])):
            begin = time.perf_counter()
            function()
            wait()
            times.append(time.perf_counter() - begin)
    return Row(work, peer, float(np.median(spent[0])), float(np.median(spent[1])), gap, len(spent[0]))


def _synchronise() -> None:
    """Wait for the GPU: its calls return before their work is done."""
    importlib.import_module("cupy").cuda.get_current_stream().synchronize()
