"""The convolutions' device code itself, compiled for the host (see on_host.py), against the reference engine.

NumPy is in the place of cuFFT as well.
"""

import itertools
import re
import sys
import types

import numpy as np
import pytest
import scipy.fft

from linscan import _arrays
from linscan.engines.reference import fft_conv as reference_long
from linscan.engines.reference import fft_conv_nd as reference_boxes
from linscan.engines.reference import short_conv as reference_short
from tests import oracles
from tests.conftest import random
from tests.engines.on_host import Array, empty, launch, library, needs_compiler, stand_in
from tests.tolerances import assert_close, eps, summed, transformed

pytestmark = [pytest.mark.slow, needs_compiler]

# Kernels with a block to each piece of work.
WHOLE = {"fir", "fir_taps", "conv_fft", "columns_in", "rows", "columns_out", "correlate", "gather_up"}
MODULES = [
    "_load",
    "capture",
    "cufft",
    "fir",
    "short_conv",
    "conv_fft",
    "conv_fft_back",
    "conv_long",
    "conv_passes",
    "fft_conv",
    "fft_conv_nd",
]


def on_cpu(x):
    return None if x is None else np.array(x).view(Array)


class Plan:
    """cuFFT's plan of lines or boxes, by NumPy."""

    def __init__(self, shape, ie, istride, idist, oe, ostride, odist, kind, count, order, last, size):
        self.n, self.kind, self.count, self.distances = shape, kind, count, (idist, odist)
        self.boxes = [(count, *embed) for embed in ((oe, ie) if kind == "back" else (ie, oe))]

    def fft(self, x, out, direction):
        x, n, axes = np.asarray(x), self.n, tuple(range(1, len(self.n) + 1))
        assert len(x) == self.count
        assert self.distances[self.kind == "back"] == x.shape[1]
        samples, rows = x.reshape(self.boxes[0]), (..., slice(n[-1]))
        if self.kind == "complex":
            samples[...] = (
                np.fft.fftn(samples, n, axes) if direction < 0 else np.fft.ifftn(samples, n, axes) * np.prod(n)
            )
            return
        spectra = x.view(np.complex64 if x.dtype == np.float32 else np.complex128).reshape(self.boxes[1])
        if self.kind == "forward":
            spectra[...] = np.fft.rfftn(samples[rows], n, axes)
        else:
            samples[rows] = np.fft.irfftn(spectra.copy(), n, axes) * np.prod(n)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The modules `short_conv` and `fft_conv` of the engine, on a CuPy that is none."""
    folder, number = tmp_path_factory.mktemp("device_code"), itertools.count()

    class Kernel:
        max_dynamic_shared_size_bytes = 49152

        def __init__(self, code, name, options):
            self.code, self.name, self.function = code, name, None

        def compiled(self):
            code = re.sub(r"extern __shared__ Z (\w+)\[\]", r"static Z \1[1 << 15]", self.code)
            code = re.sub(r"asm volatile\(.*?\);", ";", code)
            return getattr(library(folder / f"{next(number)}.cpp", code, "-O1", "-mfma"), f"on_cpu_{self.name}")

        def __call__(self, grid, threads, arguments, shared_mem=0):
            self.function = self.function or self.compiled()
            few = grid[0] if self.name in WHOLE else min(grid[0], 8)
            launch(self.function, (few,), threads, arguments)

    kinds = {"R2C": "forward", "D2Z": "forward", "C2R": "back", "Z2D": "back", "C2C": "complex", "Z2Z": "complex"}
    cufft = types.SimpleNamespace(PlanNd=Plan, CUFFT_FORWARD=-1, CUFFT_INVERSE=1)
    for name, kind in kinds.items():
        setattr(cufft, f"CUFFT_{name}", kind)
    cupy, cupyx = stand_in(), types.ModuleType("cupyx.scipy.fft")
    cupy.cuda.cufft, cupy.cuda.function = cufft, types.SimpleNamespace(CNumpyArray=lambda struct: struct)
    cupy.RawKernel = Kernel
    cupyx.next_fast_len = scipy.fft.next_fast_len
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_arrays, "sum_rows", lambda x, keep=1: x.sum(axis=tuple(range(x.ndim - keep))))
        beside = {
            "cupyx": types.ModuleType("cupyx"),
            "cupyx.scipy": types.ModuleType("cupyx.scipy"),
            "cupyx.scipy.fft": cupyx,
        }
        for name, module in {"cupy": cupy, "cupy.cuda": cupy.cuda, "cupy.cuda.cufft": cufft, **beside}.items():
            patch.setitem(sys.modules, name, module)
        for name in MODULES:
            patch.delitem(sys.modules, f"linscan.engines.cuda.{name}", raising=False)
        from linscan.engines.cuda import fft_conv, fft_conv_nd, short_conv

        yield types.SimpleNamespace(long=fft_conv, short=short_conv, boxes=fft_conv_nd)
        for name in MODULES:
            sys.modules.pop(f"linscan.engines.cuda.{name}", None)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_short_filters(rng, engine, dtype, axis):
    for length, channels, width, dilation in [(1100, 3, 4, 1), (301, 4, 4, 5), (70, 5, 11, 1)]:
        span = (width - 1) * dilation
        shape, past = ((2, n, channels) if axis == 1 else (2, channels, n) for n in (length, span))
        u, state, dy = random(rng, shape, dtype), random(rng, past, dtype), random(rng, shape, dtype)
        w, bias = random(rng, (1, channels, width), dtype), random(rng, (1, channels), dtype)
        for reverse, reset in itertools.product((False, True), (None, rng.random(shape) < 0.05)):
            options = {"axis": axis, "dilation": dilation, "reverse": reverse, "workers": None}
            got = engine.short.short_conv(*map(on_cpu, (u, w, bias, state)), reset=on_cpu(reset), **options)
            wide = [oracles.wide(x) for x in (u, w, bias, state)]
            assert_close(got, reference_short.short_conv(*wide, reset=reset, **options), summed(dtype, width + 1))
            if reverse and reset is not None:
                grads = engine.short.short_conv_pullback(
                    *map(on_cpu, (u, w, bias, state, dy)), reset=on_cpu(reset), **options
                )
                wants = reference_short.short_conv_pullback(*wide, oracles.wide(dy), reset=reset, **options)
                for name, x, y in zip(("du", "dw", "dbias", "dstate"), grads, wants, strict=True):
                    assert_close(x, y, summed(dtype, width + 1) + eps(dtype), name)


CASES = [
    ((2, 9, 300), (9, 300), 0, 300, False, "fft", None, "float32"),  # fused
    ((2, 1, 301), (3, 299), 149, 301, False, "fft", None, "float32"),  # kernels that share a signal
    ((2, 3, 1024), (3, 80), 0, 1024, True, "fft", None, "float32"),  # wrapped around
    ((3, 5001), (100,), 99, 4902, False, "blocked", None, "float32"),  # blocks of a row
    ((2, 3, 300), (3, 300), 0, 300, False, "fft", 600, "float32"),  # by cuFFT, spectrum given
    ((2, 3, 300), (3, 300), 0, 300, False, "fft", None, "complex64"),  # by cuFFT
    ((2, 3, 90), (3, 90), 7, 80, False, "direct", None, "float32"),
]


LAYOUTS = pytest.mark.parametrize("turned", [False, True], ids=["time_last", "channels_last"])


@LAYOUTS
@pytest.mark.parametrize(("u_shape", "k_shape", "start", "length", "circular", "method", "bins", "dtype"), CASES)
@pytest.mark.parametrize("with_nan", [False, True])
def test_long_convolutions(
    rng, engine, u_shape, k_shape, start, length, circular, method, bins, dtype, turned, with_nan
):
    u, k = random(rng, u_shape, dtype), random(rng, k_shape, dtype)
    if with_nan and bins is None:
        u[0, ..., 70:80], u[-1, ..., 5], k[..., 60] = np.nan, np.inf, 0
    lead = np.broadcast_shapes(u_shape[:-1], k_shape[:-1])
    y = empty((*lead, length), dtype)
    if turned:
        u = np.ascontiguousarray(u.swapaxes(-1, -2)).swapaxes(-1, -2)
        y = empty((*lead[:-1], length, lead[-1]), dtype).swapaxes(-1, -2)
    spectrum = None if bins is None else on_cpu(np.fft.rfft(oracles.wide(k), bins).astype(np.complex64))
    options = {"start": start, "circular": circular, "method": method, "workers": None}
    u = u.view(Array) if turned else on_cpu(u)
    engine.long.fft_conv(u, on_cpu(k), y, spectrum=spectrum, **options)
    want = np.empty((*lead, length), oracles.wide(y).dtype)
    with np.errstate(all="ignore"):
        reference_long.fft_conv(oracles.wide(u), oracles.wide(k), want, spectrum=None, **options)
    fine = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(y), fine)
    assert_close(
        np.asarray(y)[fine], want[fine], 8 * transformed(dtype, 2048) if with_nan else transformed(dtype, 2048)
    )
    if not with_nan and bins is None:
        dy = random(rng, y.shape, dtype)
        dk = engine.long.fft_conv_pullback(u, on_cpu(k), on_cpu(dy), **options)
        wide = reference_long.fft_conv_pullback(oracles.wide(u), oracles.wide(k), oracles.wide(dy), **options)
        assert_close(dk, wide, transformed(dtype, 2048))


@LAYOUTS
def test_three_passes(rng, engine, turned):
    shapes = ((2, 33_000), (20_000,)) if turned else ((1, 40_001), (20_000,))
    length = shapes[0][-1]
    test_long_convolutions(rng, engine, *shapes, 7, length, False, "fft", None, "float32", turned, not turned)


BOXES = [
    ((2, 3, 9, 10), (3, 4, 6), (0, 0), (False, False), "float32"),
    ((3, 2, 4, 5, 7), (1, 2, 3, 2, 9), (1, 0, 4), (False, True, False), "float32"),
    ((2, 40), (2, 33), (16,), (False,), "complex64"),
]


@pytest.mark.parametrize(("u_shape", "k_shape", "starts", "circular", "dtype"), BOXES)
@pytest.mark.parametrize("with_nan", [False, True])
def test_convolutions_over_several_axes(rng, engine, monkeypatch, u_shape, k_shape, starts, circular, dtype, with_nan):
    monkeypatch.setattr(sys.modules["linscan.engines.cuda.conv_passes"], "_BATCH", 4000)  # a few rows
    engine.boxes._plans.clear()
    dims = len(starts)
    u, k = random(rng, u_shape, dtype), random(rng, (1,) * (len(u_shape) - len(k_shape)) + k_shape, dtype)
    for i, wraps in enumerate(circular, -dims):  # as the op folds them
        if wraps:
            k = np.concatenate([k, np.zeros_like(k)] * u.shape[i], i).take(range(u.shape[i]), i)
    if with_nan:
        u[0].flat[-9:-6], u[-1].flat[5], k[-1].flat[0] = np.nan, np.inf, -np.inf
    u = np.asfortranarray(u).view(Array)
    options = {"starts": starts, "circular": circular, "workers": None}
    got = engine.boxes.fft_conv_nd(u, on_cpu(k), u_shape[-dims:], **options)
    with np.errstate(all="ignore"):
        want = reference_boxes.fft_conv_nd(*map(oracles.wide, (u, k)), u_shape[-dims:], **options)
    fine = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), fine)
    assert_close(np.asarray(got)[fine], want[fine], 2 * transformed(dtype, 2048))
