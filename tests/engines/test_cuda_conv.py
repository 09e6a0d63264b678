"""The laws of `short_conv` and `fft_conv` on the GPU, against the CPU engine in double precision (itself tested against
plain loops), and what only a GPU can get wrong: layouts, tails, unwritten outputs, streams, graphs.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import assert_close, eps, summed, transformed

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]
cupy = pytest.importorskip("cupy")

MODES = ["causal", "bidirectional", "circular"]


def on_gpu(x):
    return None if x is None else cupy.asarray(x)


def compare(names, got, want, dtype, tolerance):
    for name, x, y in zip(names, got, want, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == dtype_of(dtype)
            assert_close(cupy.asnumpy(x), y, tolerance, name)


def check_short(rng, arrays, dtype, tolerance, *, lay=on_gpu, reset=None, **options):
    """Outputs and all gradients of `short_conv`."""
    wide = (None if x is None else oracles.wide(x) for x in arrays)
    want, want_back = linscan.short_conv_vjp(*wide, reset=reset, **options)
    got, back = linscan.short_conv_vjp(*map(lay, arrays), reset=on_gpu(reset), **options)
    want, got = (x if isinstance(x, tuple) else (x,) for x in (want, got))
    flows = [random(rng, x.shape, dtype) for x in want]
    grads = back(*map(lay, flows)), want_back(*map(oracles.wide, flows))
    compare(("y", "state")[: len(want)], got, want, dtype, tolerance)
    # What is compared with has itself summed all products of a tap one after the other.
    terms = arrays[0].size * arrays[1].shape[-1] // max(1, arrays[1].size)
    compare(("du", "dw", "dbias", "dstate"), *grads, dtype, tolerance + summed("float64", terms))


@given(
    lead=st.lists(st.integers(1, 3), max_size=2),
    trail=st.lists(st.integers(1, 5), max_size=2),
    length=st.integers(0, 300),
    width=st.integers(1, 12),
    dilation=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    reverse=st.booleans(),
    parts=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_short_filter(lead, trail, length, width, dilation, dtype, reverse, parts, flip, seed):
    rng = np.random.default_rng(seed)
    with_bias, with_state, with_reset, shared = parts
    axis, shape = len(lead), (*lead, length, *trail)
    u = random(rng, shape, dtype)
    w = random(rng, (*([1] * len(lead) if shared else lead), *trail, width), dtype)
    bias = random(rng, (*lead, *trail), dtype) if with_bias else None
    state = random(rng, (*lead, (width - 1) * dilation, *trail), dtype) if with_state else None
    reset = rng.random((*lead, length, *[1 if shared else n for n in trail])) < 0.1 if with_reset else None

    def lay(x):
        return None if x is None else cupy.asarray(x)[::-1].copy()[::-1] if flip and x.ndim else cupy.asarray(x)

    options = {"axis": axis, "dilation": dilation, "reverse": reverse}
    check_short(rng, (u, w, bias, state), dtype, summed(dtype, max(width, length * 9)), lay=lay, reset=reset, **options)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_short_filters_of_every_width_and_tail(rng, dtype, axis):
    for length, channels, width, dilation in [
        (8192, 3, 4, 1), (8191, 8, 4, 1), (4097, 4, 8, 2), (1024, 64, 9, 1), (2000, 32, 64, 1), (63, 160, 4, 1),
        (64, 33, 3, 1), (1, 8, 4, 1), (3, 8, 4, 5), (513, 7, 2, 100),
    ]:  # fmt: skip
        shape = (2, channels, length) if axis == -1 else (2, length, channels)
        past = (2, channels, (width - 1) * dilation) if axis == -1 else (2, (width - 1) * dilation, channels)
        arrays = random(rng, shape, dtype), random(rng, (channels, width), dtype), random(rng, (channels,), dtype)
        state = random(rng, past, dtype)
        for reverse in (False, True):
            options = {"axis": axis, "dilation": dilation, "reverse": reverse}
            check_short(rng, (*arrays, state), dtype, summed(dtype, width) + 2 * eps(dtype), **options)


def test_a_filter_in_pieces_and_step_by_step_gives_the_same_bits(rng):
    u, w = cupy.asarray(random(rng, (2, 500, 16), "float32")), cupy.asarray(random(rng, (16, 4), "float32"))
    whole = linscan.short_conv(u, w)
    parts, state = [], 0
    for piece in (u[:, :1], u[:, 1:200], u[:, 200:]):
        y, state = linscan.short_conv(piece, w, state=state)
        parts.append(y)
    np.testing.assert_array_equal(cupy.asnumpy(cupy.concatenate(parts, 1)), cupy.asnumpy(whole))
    other = linscan.short_conv(cupy.ascontiguousarray(u[:, :, 3:4].swapaxes(1, 2)), w[3:4], axis=-1)
    np.testing.assert_array_equal(cupy.asnumpy(other[:, 0]), cupy.asnumpy(whole[:, :, 3]))
    y, _ = linscan.short_conv_step(u[:, 499], w, None, u[:, 496:499])
    np.testing.assert_array_equal(cupy.asnumpy(y), cupy.asnumpy(whole[:, 499]))


def test_70000_rows(rng):
    u, w = random(rng, (70_000, 40), "float32"), random(rng, (70_000, 3), "float32")
    check_short(rng, (u, w, None, None), "float32", summed("float32", 40), axis=-1)


def check_long(rng, u, k, dtype, tolerance, *, state=None, lay=on_gpu, **options):
    """Outputs and all gradients of `fft_conv`."""
    wide = {**options, "state": None if state is None else oracles.wide(state)}
    want, want_back = linscan.fft_conv_vjp(oracles.wide(u), oracles.wide(k), **wide)
    got, back = linscan.fft_conv_vjp(lay(u), lay(k), state=on_gpu(state), **options)
    want, got = (x if isinstance(x, tuple) else (x,) for x in (want, got))
    flows = [random(rng, x.shape, dtype) for x in want]
    grads = back(*map(on_gpu, flows)), want_back(*map(oracles.wide, flows))
    compare(("y", "state")[: len(want)], got, want, dtype, tolerance)
    for name, x, y in zip(("du", "dk", "dstate"), *grads, strict=True):
        if x is not None:
            assert_close(cupy.asnumpy(x), y, tolerance, name)


@given(
    lead=st.lists(st.sampled_from([(1, 1), (3, 1), (1, 3), (3, 3)]), max_size=3),
    length=st.integers(1, 400),
    width=st.integers(1, 400),
    axis=st.integers(-4, -1),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    mode=st.sampled_from(MODES),
    method=st.sampled_from(["auto", "direct", "fft", "blocked"]),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_long_convolution(lead, length, width, axis, dtype, mode, method, flip, seed):
    rng = np.random.default_rng(seed)
    axis = max(axis, -len(lead) - 1)
    shapes = [[m for m, _ in lead], [n for _, n in lead]]
    for shape, n in zip(shapes, (length, width), strict=True):
        shape.insert(len(shape) + 1 + axis, n)
    u, k = (random(rng, tuple(shape), dtype) for shape in shapes)

    def lay(x):
        return cupy.asarray(x)[::-1].copy()[::-1] if flip else cupy.asarray(x)

    options = {"axis": axis, "mode": mode, "method": method}
    check_long(rng, u, k, dtype, summed(dtype, 400) + transformed(dtype, 800), lay=lay, **options)


# Around every size of a transform in one block, and beyond; blocks of a row; odd samples; both layouts.
LONG = [(70, 65), (512, 513), (513, 512), (1024, 1024), (1025, 1000), (2048, 2048), (4096, 4096), (8192, 8192),
        (16384, 16384), (16385, 16384), (40_000, 1001), (20_001, 70), (65_536, 3000),
        (40_000, 40_000), (200_000, 200_000)]  # fmt: skip


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_convolutions_of_every_size(rng, dtype, axis):
    for length, width in LONG if dtype == "float32" else LONG[1:9:3] + LONG[10:12]:
        shapes = ((2, 3, length), (3, width)) if axis == -1 else ((2, length, 3), (width, 3))
        u, k = (random(rng, shape, dtype) for shape in shapes)
        for mode, state in (("causal", None), ("bidirectional", None), ("circular", None), ("causal", width - 1)):
            past = None
            if state is not None:
                past = random(rng, (2, 3, state) if axis == -1 else (2, state, 3), dtype)
            check_long(
                rng, u, k, dtype, transformed(dtype, 2 * length) + 2 * eps(dtype), axis=axis, mode=mode, state=past
            )


@pytest.mark.parametrize("length", [300, 3000, 40_000])
def test_a_given_spectrum(rng, length):
    u, k = random(rng, (4, length), "float32"), random(rng, (length,), "float32")
    want = linscan.fft_conv(oracles.wide(u), oracles.wide(k))
    for n in (2 * length, 1 << (2 * length - 1).bit_length()):
        spectrum = cupy.asarray(np.fft.rfft(oracles.wide(k), n).astype(np.complex64))
        got = linscan.fft_conv(cupy.asarray(u), cupy.asarray(k), spectrum=spectrum)
        assert_close(cupy.asnumpy(got), want, transformed("float32", n))
    several = cupy.asarray(u.T.copy()), cupy.asarray(u.T.copy()), cupy.fft.rfft(cupy.asarray(u.T), 2 * length, axis=0)
    got = linscan.fft_conv(*several[:2], axis=0, spectrum=several[2].astype(np.complex64))
    want = linscan.fft_conv(oracles.wide(u), oracles.wide(u))
    assert_close(cupy.asnumpy(got).T, want, transformed("float32", 2 * length))


@pytest.mark.parametrize("method", ["direct", "fft", "blocked"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("length", "width"), [(200, 90), (1500, 1200), (40_000, 90)])
def test_nan_and_inf_reach_what_the_plain_sum_lets_them(rng, mode, method, length, width):
    u, k = random(rng, (5, length), "float32"), random(rng, (5, width), "float32")
    u[0, 30], u[1, length - 1], u[1, 40:100], u[2, 50] = np.nan, np.inf, np.nan, -np.inf
    k[3, 10], k[2, 80] = np.inf, 0
    with np.errstate(all="ignore"):
        want = linscan.fft_conv(oracles.wide(u), oracles.wide(k), mode=mode, method=method)
    got = cupy.asnumpy(linscan.fft_conv(cupy.asarray(u), cupy.asarray(k), mode=mode, method=method))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(want))
    fine = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), fine)
    assert_close(got[fine], want[fine], transformed("float32", length + width) + summed("float32", width))


@pytest.mark.parametrize("length", [2000, 30_000])
def test_bits_repeat_and_do_not_depend_on_other_rows_or_the_stream(rng, length):
    u, k = cupy.asarray(random(rng, (40, length), "float32")), cupy.asarray(random(rng, (40, length), "float32"))
    whole = linscan.fft_conv(u, k)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        again = linscan.fft_conv(u, k)
        stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(whole), cupy.asnumpy(again))
    few = linscan.fft_conv(u[3:5], k[3:5])
    np.testing.assert_array_equal(cupy.asnumpy(few), cupy.asnumpy(whole[3:5]))


@pytest.mark.parametrize("length", [2000, 30_000])
def test_a_captured_graph_runs_again(rng, length):
    u, k = cupy.asarray(random(rng, (4, length), "float32")), cupy.asarray(random(rng, (4, length), "float32"))
    w = cupy.asarray(random(rng, (4, 3), "float32"))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        spectrum = cupy.fft.rfft(k, 2 * length).astype(np.complex64)
        for _ in range(2):  # what is compiled and planned once
            linscan.fft_conv(u, k, spectrum=spectrum), linscan.short_conv(u, w, axis=-1)
        stream.synchronize()
        stream.begin_capture()
        y, z = linscan.fft_conv(u, k, spectrum=spectrum), linscan.short_conv(u, w, axis=-1)
        graph = stream.end_capture()
        u *= 2
        want = linscan.fft_conv(u, k, spectrum=spectrum), linscan.short_conv(u, w, axis=-1)
        graph.launch()
        stream.synchronize()
    for got, expected in zip((y, z), want, strict=True):
        np.testing.assert_array_equal(cupy.asnumpy(got), cupy.asnumpy(expected))


BOXES = [
    ((2, 3, 20, 33), (1, 3, 20, 40), (-2, -1), "causal"),
    ((2, 17, 1, 24, 5), (2, 5, 1, 3, 5), (1, 3), ("bidirectional", "circular")),
    ((3, 6, 7, 30), (1, 2, 3, 9), (1, 2, 3), ("circular", "causal", "bidirectional")),
    ((40, 4, 65, 128), (1, 4, 65, 128), (-2, -1), "bidirectional"),
    ((5, 300), (5, 40), (-1,), "causal"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("u_shape", "k_shape", "axes", "mode"), BOXES)
def test_convolutions_over_several_axes(rng, u_shape, k_shape, axes, mode, dtype):
    u, k = random(rng, u_shape, dtype), random(rng, k_shape, dtype)
    want, want_back = linscan.fft_conv_nd_vjp(oracles.wide(u), oracles.wide(k), axes, mode)
    got, back = linscan.fft_conv_nd_vjp(on_gpu(u), on_gpu(k), axes, mode)
    dy = random(rng, want.shape, dtype)
    tolerance = transformed(dtype, 1 << 16) + 2 * eps(dtype)
    grads = back(on_gpu(dy)), want_back(oracles.wide(dy))
    compare(("y", "du", "dk"), (got, *grads[0]), (want, *grads[1]), dtype, tolerance)


def test_convolutions_over_several_axes_of_nan_and_inf(rng):
    u, k = random(rng, (4, 3, 20, 300), "float32"), random(rng, (3, 9, 40), "float32")[None]
    u[0, 0, 3, 5:200], u[1, 1, 2], u[1, 2, 19, 299], u[3] = np.nan, np.inf, -np.inf, np.nan
    k[0, 2, 0, 1] = np.inf
    for mode in MODES:
        with np.errstate(all="ignore"):
            want = linscan.fft_conv_nd(oracles.wide(u), oracles.wide(k), mode=mode)
        got = cupy.asnumpy(linscan.fft_conv_nd(on_gpu(u), on_gpu(k), mode=mode))
        for test in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(test(got), test(want))
        fine = np.isfinite(want)
        assert_close(got[fine], want[fine], transformed("float32", 1 << 16))


def test_a_captured_convolution_over_two_axes_runs_again(rng):
    u, k = cupy.asarray(random(rng, (4, 2, 50, 60), "float32")), cupy.asarray(random(rng, (1, 2, 9, 9), "float32"))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        linscan.fft_conv_nd(u, k)
        stream.synchronize()
        stream.begin_capture()
        y = linscan.fft_conv_nd(u, k)
        graph = stream.end_capture()
        u *= 2
        want = linscan.fft_conv_nd(u, k)
        graph.launch()
        stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(y), cupy.asnumpy(want))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex128"])
def test_few_taps_over_two_axes(rng, dtype):
    arrays = random(rng, (2, 9, 8, 3), dtype), random(rng, (3, 5, 3, 4), dtype), random(rng, (4,), dtype)
    want, want_back = linscan.short_conv_nd_vjp(*map(oracles.wide, arrays))
    got, back = linscan.short_conv_nd_vjp(*map(on_gpu, arrays))
    dy = random(rng, want.shape, dtype)
    grads = back(on_gpu(dy)), want_back(oracles.wide(dy))
    compare(("y", "du", "dw", "dbias"), (got, *grads[0]), (want, *grads[1]), dtype, summed(dtype, 144) + 2 * eps(dtype))


@pytest.mark.slow
def test_a_short_filter_of_more_than_2_31_samples():
    length = 2**31 + 1
    u, w = cupy.zeros(length, dtype_of("bfloat16")), cupy.asarray([[1, 2, 4]], dtype_of("bfloat16"))
    marks = [0, 1000, 2**31 - 2, 2**31]
    u[marks] = 1
    for axis in (-1, 0):
        y = linscan.short_conv(u[None] if axis == -1 else u[:, None], w, axis=axis).reshape(-1)
        for mark, after in zip(marks, ([1, 2, 4], [1, 2, 4], [1, 2, 5], [5]), strict=True):
            assert cupy.asnumpy(y[mark : mark + 3]).astype(float).tolist() == after, mark
        assert int(cupy.count_nonzero(y.view(np.uint16))) == 9
        del y


def test_two_devices_arrays_are_refused():
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU here")
    u = cupy.ones((3, 100), np.float32)
    with cupy.cuda.Device(1):
        w = cupy.ones((3, 4), np.float32)
    for op, other in ((linscan.short_conv, "w"), (linscan.fft_conv, "k")):
        with pytest.raises(TypeError, match=f"arrays must be on one device; u is on GPU 0, {other} on GPU 1"):
            op(u, w, axis=-1)
