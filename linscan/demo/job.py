"""What the demo computes: baseline removal, a HiPPO-LegS memory, and one S4D kernel applied in three ways."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import legendre
from scipy import signal as ss

import linscan
from linscan._arrays import Array, namespace, to_host

FILTER_ORDER = 4
MODES = 32  # complex modes of the S4D kernel
_BLOCK = 1 << 15  # samples scanned at once: bounds the memory of the states, 16 MiB per array
_MOST_STEPS = 200_000  # samples stepped one at a time: a second or two

Tick = Callable[[int], None]


class Recording(NamedTuple):
    """A signal and how to look at it."""

    name: str  # of the files written
    description: str
    signal: np.ndarray  # (T,) float64
    fs: float  # samples per unit of time
    unit: str  # of the signal
    time_unit: str
    frequency_unit: str
    start: float  # time of the first sample
    cutoff: float  # what is slower is baseline
    centre: float  # the rhythm the S4D kernel is tuned to
    order: int  # coefficients of the memory
    shown: int  # periods of that rhythm to draw close up


class Result(NamedTuple):
    """Everything the demo computed from one recording."""

    sos: np.ndarray
    filtered: np.ndarray  # (T,)
    memory: np.ndarray  # (order,) Legendre coefficients of the whole past
    recalled: np.ndarray  # (T,) the past, read from the memory
    best: np.ndarray  # (T,) the polynomial of the same degree closest to the past
    modes: tuple[np.ndarray, np.ndarray, np.ndarray]  # (a_bar, w, c), each (MODES,)
    target: np.ndarray  # (K,) what the kernel was fitted to
    kernel: np.ndarray  # (K,)
    by_fft: np.ndarray  # (T,) the three ways
    by_scan: np.ndarray  # (T,)
    by_step: np.ndarray  # (at most T,)


def work_of(recording: Recording) -> int:
    """Ticks that `run` will report."""
    size = recording.signal.size
    return recording.order + math.ceil(size / _BLOCK) + min(size, _MOST_STEPS) // 1024


def run(recording: Recording, tick: Tick, xp: Any = np) -> Result:
    """Do the whole job on one recording, calling ``tick(1)`` as it goes, with the arrays of the library `xp`.

    Single steps are NumPy's in any case: a live signal arrives in main memory.
    """
    u, fs = xp.asarray(recording.signal), recording.fs
    sos = ss.butter(FILTER_ORDER, recording.cutoff, "highpass", fs=fs, output="sos")
    filtered = remove_baseline(sos, u)
    memory = remember(u, recording.order, tick)
    recalled = recall(memory, recording.signal[0], u.size)
    best = nearest_polynomial(recording.signal, recording.order)
    modes, target = fit_wavelet(fs, recording.centre, min(u.size, wavelet_length(fs, recording.centre)))
    a_bar, w, c = modes
    kernel = linscan.ssm_kernel(xp.asarray(a_bar), xp.asarray(2 * c * w), target.size)
    by_fft = to_host(linscan.fft_conv(filtered, kernel))
    by_scan = to_host(apply_by_scan(filtered, modes, tick))
    filtered, kernel = to_host(filtered), to_host(kernel)
    by_step = apply_by_step(filtered[:_MOST_STEPS], modes, tick)
    return Result(sos, filtered, memory, recalled, best, modes, target, kernel, by_fft, by_scan, by_step)


def remove_baseline(sos: np.ndarray, u: Array) -> Array:
    """`u` through the high-pass `sos`, started as if its first value had been there forever: no step at the start."""
    xp = namespace(u)
    zi = xp.asarray(ss.sosfilt_zi(sos)) * u[0]
    filtered, _ = linscan.sosfilt(xp.asarray(sos), u, zi=zi)
    return filtered


def remember(u: Array, order: int, tick: Tick) -> np.ndarray:
    """The HiPPO-LegS state after `u`: the first Legendre coefficients of its whole past, about its first value.

    ``(I - A/2t) x[t] = (I + A/2t) x[t-1] + (B/t) u[t]`` has a new matrix at every t, but A is lower triangular: given
    ``past = sum of B[k] x[k]`` over the coefficients before n, coefficient n alone is a time-varying recurrence of
    order one. So `order` scans over time replace T triangular solves.
    """
    xp = namespace(u)
    A, B = linscan.hippo("legs", order)
    gain, rate = B[:, 0].tolist(), (-np.diag(A)).tolist()
    u = u - u[0]  # the state starts at zero, and bilinear steps ring after a jump
    half = 0.5 / xp.arange(1, u.size + 1)  # half of 1/t
    memory = xp.empty(order)
    past = xp.zeros(u.size)
    for n in range(order):
        z = rate[n] * half
        drive = 2 * u - past
        drive[1:] -= past[:-1]
        x = linscan.scan((1 - z) / (1 + z), gain[n] * half * drive / (1 + z))
        past += gain[n] * x
        memory[n] = x[-1]
        tick(1)
    return to_host(memory)


def recall(memory: np.ndarray, first: float, size: int) -> np.ndarray:
    """The past that a LegS memory holds, at `size` samples: ``sum of memory[n] sqrt(2n+1) P_n`` over the whole past."""
    return first + legendre.legval(_past(size), memory * np.sqrt(2 * np.arange(memory.size) + 1))


def nearest_polynomial(u: np.ndarray, order: int) -> np.ndarray:
    """The polynomial with `order` coefficients closest to `u` in least squares: no memory of that size recalls more."""
    past = _past(u.size)
    gram, moments = np.zeros((order, order)), np.zeros(order)
    for lo in range(0, u.size, _BLOCK):
        columns = legendre.legvander(past[lo : lo + _BLOCK], order - 1)
        gram += columns.T @ columns
        moments += columns.T @ u[lo : lo + _BLOCK]
    return legendre.legval(past, np.linalg.lstsq(gram, moments, rcond=None)[0])


def _past(size: int) -> np.ndarray:
    """The sample times mapped to (-1, 1): each sample in the middle of its interval."""
    return (2 * np.arange(size) + 1) / size - 1


def wavelet_length(fs: float, centre: float) -> int:
    """Samples after which an S4D kernel tuned to `centre`, losing a factor e per period, has fallen below 1e-17."""
    return math.ceil(40 * fs / centre)


def fit_wavelet(fs: float, centre: float, size: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """S4D-Inv modes ``(a_bar, w, c)`` whose kernel is, by least squares, a Morlet wavelet; and the wavelet."""
    lam, _ = linscan.diagonal_init("inv", 2 * MODES)  # its input weights are 1
    a_bar, w = linscan.discretize_diag(lam, 2 * centre / fs, "zoh")
    t = np.arange(size) / fs
    width = 1 / (np.pi * centre)
    bell = np.exp(-0.5 * ((t - 3 * width) / width) ** 2)
    target = bell * (np.cos(2 * np.pi * centre * (t - 3 * width)) - np.exp(-2))  # the constant takes out its mean
    target /= np.abs(np.sum(target * np.exp(-2j * np.pi * centre * t)))  # gain 1 at its centre
    each = np.concatenate([np.eye(MODES), 1j * np.eye(MODES)])  # every mode's kernel alone, in phase and in quadrature
    basis = linscan.ssm_kernel(a_bar, 2 * each * w, size)
    parts = np.linalg.lstsq(basis.T, target, rcond=1e-8)[0]
    return (a_bar, w, parts[:MODES] + 1j * parts[MODES:]), target


def apply_by_scan(u: Array, modes: tuple[np.ndarray, ...], tick: Tick) -> Array:
    """``x[t] = a_bar x[t-1] + w u[t]``, ``y = 2 Re(c x)``, all times at once, in blocks that hand on their state."""
    xp = namespace(u)
    a_bar, w, c = (xp.asarray(x) for x in modes)
    y = xp.empty(u.size)
    h0 = xp.zeros(a_bar.size, a_bar.dtype)
    for lo in range(0, u.size, _BLOCK):
        block = u[lo : lo + _BLOCK]
        x = linscan.scan(a_bar[:, None], w[:, None] * block, h0)
        y[lo : lo + _BLOCK] = 2 * (c @ x).real
        h0 = x[:, -1]
        tick(1)
    return y


def apply_by_step(u: np.ndarray, modes: tuple[np.ndarray, ...], tick: Tick) -> np.ndarray:
    """The same one sample at a time, as a live signal would arrive."""
    a_bar, w, c = modes
    y = np.empty(u.size)
    x = np.zeros(a_bar.size, a_bar.dtype)
    for t in range(u.size):
        x = linscan.scan_step(a_bar, w * u[t], x)
        y[t] = 2 * (c @ x).real
        if t % 1024 == 1023:
            tick(1)
    return y


def differences(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """How far `x` is from `y` over their common start: in norm, relative to `y`; and the largest single difference."""
    size = min(x.size, y.size)
    gap, norm = x[:size] - y[:size], float(np.linalg.norm(y[:size]))
    return float(np.linalg.norm(gap)) / norm if norm else float(np.linalg.norm(gap)), float(np.abs(gap).max())
