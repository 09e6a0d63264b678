"""Long convolutions on the GPU: directly, in one fused kernel, in three passes, or by cuFFT in batches in the cache.

NaN and inf do not enter transforms: zero stands for them, a mark is set on the device, and a last kernel, which ends
at once where there is no mark, adds what the plain sum has of them. Nothing waits for the device. (A spectrum that was
given is taken as it is: one of a kernel with NaN makes the whole row NaN.)
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array, accum_dtype, grad_like
from linscan.engines.cuda import conv_long, cufft
from linscan.engines.cuda.conv_fft import Launch, most_memory
from linscan.engines.cuda.conv_fft_back import Sums, correlated
from linscan.engines.cuda.conv_passes import THREADS, Passes, batches, by_cufft, spectrum_of, window_of
from linscan.engines.cuda.conv_sizes import Cut, Problem, cut
from linscan.engines.cuda.fir import Reach, fir, fir_taps
from linscan.engines.cuda.layout import operands
from linscan.engines.reference import fft_conv as reference


def fft_conv(
    u: Array, k: Array, y: Array, *, start: int, circular: bool, method: str, spectrum: Array | None, workers: Any
) -> None:
    """See `linscan.engines.reference.fft_conv`; `y` is filled."""
    if method == "direct":
        u = cupy.broadcast_to(u, (*y.shape[:-1], u.shape[-1]))
        done = fir(u, k, None, None, y, None, Reach(y.ndim - 1, 1, start, strict=True))
    else:
        done = _transformed(u, k, y, start, circular, method, spectrum)
    if not done:
        options = {"start": start, "circular": circular, "method": method, "spectrum": spectrum, "workers": workers}
        reference.fft_conv(u, k, y, **options)


class _Plan(NamedTuple):
    """All that follows from shapes and strides."""

    struct: np.ndarray
    window: np.ndarray
    own: Launch | conv_long.Launches | None  # where the transforms are ours
    mend: Callable[..., None]


_plans: dict[tuple[object, ...], _Plan | None] = {}


@cache
def _cut(problem: Problem, bins: int | None, device: int) -> Cut:
    return cut(problem, bins, most_memory(device), cupy)


def _transformed(u: Array, k: Array, y: Array, start: int, circular: bool, method: str, spectrum: Array | None) -> bool:
    bins, device = None if spectrum is None else spectrum.shape[-1], y.data.device_id
    problem = Problem(u.shape[-1], k.shape[-1], start, y.shape[-1], y.dtype, circular, method)
    c = _cut(problem, bins, device)
    marks = cupy.zeros(u.size // u.shape[-1] + k.size // k.shape[-1], np.uint8)
    k_mark = None
    if spectrum is not None and spectrum.strides[-1] != spectrum.dtype.itemsize:
        spectrum = spectrum.copy()  # its bins side by side
    if spectrum is None:
        k_mark = marks[u.size // u.shape[-1] :]
        spectrum = spectrum_of(_ordered(k, k, y), c.n, k_mark)
        if spectrum is None:
            return False
    key = (problem, bins, device, *((x.shape, x.strides, x.data.ptr & 15) for x in (u, k, y)), spectrum.strides)
    try:
        plan = _plans[key]
    except KeyError:
        if len(_plans) > 10_000:
            _plans.clear()
        plan = _plan(problem, c, u, k, y, spectrum if bins is None else _ordered(spectrum, k, y), marks)
        _plans[key] = plan
    if plan is None:
        return False
    if plan.own:
        plan.own.run(u, spectrum, y, marks)
    else:
        by_cufft(plan.struct, plan.window, u, spectrum, y, marks)
    plan.mend(u, k, y, marks, k_mark)
    return True


def _plan(p: Problem, c: Cut, u: Array, k: Array, y: Array, spectrum: Array, marks: Array) -> _Plan | None:
    u, k, y = (_ordered(x, k, y) for x in (u, k, y))
    split = u.size // u.shape[-1]
    u_mark, k_mark = marks[:split].reshape(u.shape[:-1]), marks[split:].reshape(k.shape[:-1])
    last = y.ndim - 1
    struct = operands(
        y.shape[:-1], p.length, (u, last), (k, last), (y, last), (u_mark, None), (k_mark, None), (spectrum, last)
    )
    if struct is None:
        return None
    tasks = int(struct["rows"][0]) * c.blocks
    window = window_of(p.samples, p.taps, p.start, c, tasks, p.circular)
    mend = Passes(y.dtype.name).prepared("mend", min(int(struct["rows"][0]), 4096), struct, window)
    if c.fused:
        return _Plan(struct, window, Launch(struct, window, u, y), mend)
    own = conv_long.Launches(struct, window, c.split, u, y) if c.split else None
    return _Plan(struct, window, own, mend)


def _ordered(x: Array | None, k: Array, y: Array) -> Array | None:
    """`x` with the axes in which rows share a kernel after the others: neighbouring rows share it in the cache."""
    if x is None:
        return None
    x = x.reshape((1,) * (y.ndim - x.ndim) + x.shape)
    if y.strides[-1] != y.dtype.itemsize:  # neighbours in memory are worth more
        return x
    own = (1,) * (y.ndim - k.ndim) + k.shape
    order = [i for i in range(y.ndim - 1) if own[i] != 1] + [i for i in range(y.ndim - 1) if own[i] == 1]
    return x.transpose(*order, y.ndim - 1)


def fft_conv_pullback(u: Array, k: Array, dy: Array, *, start: int, circular: bool, method: str, workers: Any) -> Array:
    """See `linscan.engines.reference.fft_conv`: the kernel's gradient, summed over the rows that share it."""
    taps, dk = k.shape[-1], None
    if method == "direct":
        u = cupy.broadcast_to(u, (*dy.shape[:-1], u.shape[-1]))
        sums = fir_taps(u, None, dy, None, taps, Reach(dy.ndim - 1, 1, start, strict=True))
        dk = None if sums is None else grad_like(sums[..., :-1], k)
    else:
        dk = _correlated(u, k, dy, start, circular)
    if dk is None:
        options = {"start": start, "circular": circular, "method": method, "workers": workers}
        return reference.fft_conv_pullback(u, k, dy, **options)
    return dk


def _correlated(u: Array, k: Array, dy: Array, start: int, circular: bool) -> Array | None:
    """Spectra of signal and cotangent meet, are summed over rows that share a kernel, and one transform leads back."""
    compute, samples, taps, length = accum_dtype(dy.dtype), u.shape[-1], k.shape[-1], dy.shape[-1]
    n = samples if circular else reference.fft_size(samples, taps, start, length, compute.kind != "c", cupy)
    own = (1,) * (dy.ndim - k.ndim) + k.shape
    first = [i for i in range(dy.ndim - 1) if own[i] != 1]
    order = [*first, *(i for i in range(dy.ndim - 1) if own[i] == 1), dy.ndim - 1]
    u, dy = (x.reshape((1,) * (dy.ndim - x.ndim) + x.shape).transpose(order) for x in (u, dy))
    batch = dy.shape[:-1]
    kernels = int(np.prod(batch[: len(first)], dtype=np.int64))

    def shaped(dk: Array) -> Array:
        dk = dk.reshape(*batch[: len(first)], *(1,) * (len(batch) - len(first)), taps)
        return dk.transpose(np.argsort(order).tolist()).reshape(k.shape).astype(k.dtype, copy=False)

    if not circular and compute == np.float32:
        dk = correlated(u, dy, Sums(samples, taps, start, length, kernels))
        if dk is not None:
            return shaped(dk)
    inputs, flows = (operands(batch, n, (x, x.ndim - 1)) for x in (u, dy))
    if inputs is None or flows is None:
        return None
    rows = int(inputs["rows"][0])
    bins, passes = cufft.bins(n, compute), Passes(dy.dtype.name, clean=False)
    total = cufft.lines(kernels, n, compute)
    total.fill(0)
    window = window_of(samples, taps, 0, Cut(n, n, 0, 1, False), rows, circular)
    x: Array = None
    g: Array = None
    for each, part in batches(window, compute):
        if x is None:
            x, g = cufft.lines(each, n, compute), cufft.lines(each, n, compute)
        later = part.copy()
        later["samples"], later["skip"] = length, start  # dy[t] stands at start + t
        pitch, count = np.int64(x.shape[1]), int(part["count"][0])
        passes.over("gather", inputs, 0, part, n)(u, x, pitch, None)
        passes.over("gather", flows, 0, later, n)(dy, g, pitch, None)
        cufft.transform(x, n, False)
        cufft.transform(g, n, False)
        share = rows // kernels
        grid = -(-(count // share + 2) * bins // THREADS)
        passes.prepared("add_up", grid, part)(g, x, total, np.int64(share), np.int64(bins))
    cufft.transform(total, n, True)
    return shaped(total[:, :taps])
