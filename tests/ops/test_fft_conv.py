"""Laws of `fft_conv`, `fft_conv_nd` and their gradients, on every engine that runs on the CPU."""

import itertools

import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import assert_close, eps, summed, transformed

ENGINES = ["reference", "cpu"]
MODES = ["causal", "bidirectional", "circular"]
METHODS = ["direct", "fft", "blocked"]
SIZES = [(1, 1), (1, 5), (2, 1), (7, 7), (8, 20), (65, 3), (130, 64), (40, 131)]


def tolerance(dtype, method, length):
    return summed(dtype, length) if method == "direct" else transformed(dtype, length) + eps(dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_equals_the_loop(rng, engine, mode, method):
    for (length, width), dtype in itertools.product(SIZES, DTYPES):
        u, k = random(rng, (length,), dtype), random(rng, (width,), dtype)
        with linscan.use_engine(engine):
            y = linscan.fft_conv(u, k, mode=mode, method=method)
        assert y.dtype == dtype_of(dtype)
        assert_close(y, oracles.conv(u, k, mode), tolerance(dtype, method, length + width), f"{dtype} {length} {width}")


@given(
    lead=st.lists(st.sampled_from([(1, 1), (3, 1), (1, 3), (3, 3), (2, 0)]), max_size=3),
    length=st.integers(1, 90),
    width=st.integers(1, 90),
    axis=st.integers(-4, -1),
    dtypes=st.tuples(*[st.sampled_from(["float32", "float64", "complex64", "complex128"])] * 2),
    mode=st.sampled_from(MODES),
    method=st.sampled_from(METHODS),
    engine=st.sampled_from(ENGINES),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_broadcasting_axis_layout_and_dtype(lead, length, width, axis, dtypes, mode, method, engine, flip, seed):
    rng = np.random.default_rng(seed)
    axis = max(axis, -len(lead) - 1)
    shapes = [[m or 2 for m, _ in lead], [n or 1 for _, n in lead]]
    for shape, n in zip(shapes, (length, width), strict=True):
        shape.insert(len(shape) + 1 + axis, n)
    u, k = (random(rng, tuple(shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    if flip:
        u, k = u[::-1].copy()[::-1], np.asfortranarray(k)
    u.flags.writeable = k.flags.writeable = False
    with linscan.use_engine(engine):
        y = linscan.fft_conv(u, k, axis, mode, method=method)
    assert y.dtype == np.result_type(u, k)
    assert y.flags.c_contiguous
    assert_close(y, oracles.conv_rows(u, k, axis, mode), tolerance(np.result_type(u, k), method, length + width))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cuts", [(0,), (1,), (100,), (3, 4, 50), (0, 60, 60, 99)])
def test_split_anywhere_gives_the_same(rng, engine, method, cuts):
    u, k, state = rng.standard_normal((2, 100)), rng.standard_normal(40), rng.standard_normal((2, 39))
    want = oracles.conv_rows(np.concatenate([state, u], axis=1), k)[:, 39:]
    pieces = []
    with linscan.use_engine(engine):
        for part in np.split(u, cuts, axis=1):
            y, state = linscan.fft_conv(part, k, state=state, method=method)
            pieces.append(y)
    assert_close(np.concatenate(pieces, axis=1), want, tolerance("float64", method, 140))
    np.testing.assert_array_equal(state, u[:, -39:])


def test_one_sample_at_a_time_is_short_conv_step(rng):
    u, k = rng.standard_normal((30, 2)), rng.standard_normal(5)
    want = linscan.fft_conv(u, k, axis=0)
    state, other = np.zeros((4, 2)), np.zeros((4, 2))
    for t in range(30):
        y, state = linscan.fft_conv(u[t : t + 1], k, axis=0, state=state)
        stepped, other = linscan.short_conv_step(u[t], k, None, other)
        assert_close(y[0], want[t], summed("float64", 5))
        assert_close(stepped, want[t], summed("float64", 5))
        np.testing.assert_array_equal(state, other)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
def test_linear_shifts_and_impulse(rng, engine, method, mode):
    (u, v), k = rng.standard_normal((2, 3000)), rng.standard_normal(70)
    bound = tolerance("float64", method, 3070)
    with linscan.use_engine(engine):
        conv = lambda x: linscan.fft_conv(x, k, mode=mode, method=method)  # noqa: E731
        y = conv(u)
        assert_close(conv(2 * u - 3j * v), 2 * y - 3j * conv(v), 2 * bound)
        impulse = np.zeros(3000)
        impulse[100] = 1
        lag0 = 35 if mode == "bidirectional" else 0
        assert_close(conv(impulse)[100 - lag0 : 170 - lag0], k, bound)
        later = conv(np.roll(u, 9))
        if mode == "circular":
            assert_close(later, np.roll(y, 9), 2 * bound)
        else:
            assert_close(later[100:2900], y[91:2891], 2 * bound)


def test_kernel_pairs_of_other_conventions(rng):
    u, k0, k1 = rng.standard_normal((3, 20))
    past = [sum(k0[j] * u[t - j] for j in range(t + 1)) for t in range(20)]
    future = [sum(k1[j] * u[t + j] for j in range(20 - t)) for t in range(20)]
    strictly = [sum(k1[j] * u[t + 1 + j] for j in range(19 - t)) for t in range(20)]
    s4 = linscan.fft_conv(u, np.concatenate([k1[::-1], k0]), mode="bidirectional")
    assert_close(s4, np.add(past, strictly), transformed("float64", 60))
    both = np.concatenate([k1[:0:-1], [k0[0] + k1[0]], k0[1:]])
    assert_close(linscan.fft_conv(u, both, mode="bidirectional"), np.add(past, future), transformed("float64", 60))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_scipy(rng, dtype, method):
    u, k = random(rng, (3, 5000), dtype), random(rng, (3, 200), dtype)
    y = linscan.fft_conv(u, k, method=method)
    bound = 2 * tolerance(dtype, method, 5200)
    assert_close(y, scipy.signal.fftconvolve(u, k, axes=-1)[:, :5000], bound)
    assert_close(y, scipy.signal.oaconvolve(u, k, axes=-1)[:, :5000], bound)
    filtered = [scipy.signal.lfilter(row, np.ones(1, dtype), x) for row, x in zip(k, u, strict=True)]
    assert_close(y, filtered, bound)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_depend_on_neither_workers_nor_other_rows(rng, method, dtype):
    for shape, width in (((37, 1500), 900), ((2, 200_000), 300)):
        u, k = random(rng, shape, dtype), random(rng, (width,), dtype)
        y = linscan.fft_conv(u, k, method=method)
        for workers in (1, 2, 3, 7):
            np.testing.assert_array_equal(linscan.fft_conv(u, k, method=method, workers=workers), y)
        np.testing.assert_array_equal(linscan.fft_conv(u[1], k, method=method), y[1])
        np.testing.assert_array_equal(linscan.fft_conv(u[:2], k, method=method), y[:2])
        grads = [linscan.fft_conv_vjp(u, k, method=method, workers=n)[1](y) for n in (1, 2, 5)]
        for du, dk, _ in grads[1:]:
            np.testing.assert_array_equal(du, grads[0][0])
            np.testing.assert_array_equal(dk, grads[0][1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["fft", "blocked"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["u", "k", "both"])
@np.errstate(invalid="ignore")
def test_what_is_not_finite_stays_where_the_sum_puts_it(rng, engine, method, mode, bad, place):
    u, k = rng.standard_normal((3, 2600)), rng.standard_normal((3, 90))
    u[:, 50] = k[:, 3] = 0
    clean = linscan.fft_conv(u, k, mode=mode, method=method)
    if place != "k":
        u[1, 1300] = bad
    if place != "u":
        k[1, 70] = bad
    want = linscan.fft_conv(u, k, mode=mode, method="direct")
    with linscan.use_engine(engine):
        y = linscan.fft_conv(u, k, mode=mode, method=method)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    np.testing.assert_array_equal(np.isinf(y) * np.sign(y), np.isinf(want) * np.sign(want))
    finite = np.isfinite(want)
    assert finite[0].all()
    assert (~finite).any()
    assert_close(y[finite], want[finite], 2 * transformed("float64", 2600))
    if engine == "cpu":
        np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])
    if place == "u" and mode == "causal":
        assert finite[1, :1300].all()


def test_direct_never_looks_ahead_and_keeps_small_values(rng):
    u, k = rng.standard_normal(500).astype("f"), np.exp(-0.5 * np.arange(60)).astype("f")
    y = linscan.fft_conv(u, k, method="direct")
    for t in (1, 17, 250):
        changed = u.copy()
        changed[t:] = 1e30
        np.testing.assert_array_equal(linscan.fft_conv(changed, k, method="direct")[:t], y[:t])
    impulse = np.zeros(500, "f")
    impulse[0] = 1
    np.testing.assert_array_equal(linscan.fft_conv(impulse, k)[:60], k)


def test_auto_goes_by_sizes(rng):
    u, k = rng.standard_normal((2, 8000)).astype("f")
    for (length, width), method in {
        (8000, 64): "direct",
        (64, 8000): "direct",
        (8000, 65): "blocked",
        (8000, 501): "fft",
        (300, 300): "fft",
    }.items():
        got = linscan.fft_conv(u[:length], k[:width])
        np.testing.assert_array_equal(got, linscan.fft_conv(u[:length], k[:width], method=method))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_spectrum_of_the_kernel_is_reused(rng, engine, dtype):
    u, k = random(rng, (3, 2, 300), dtype), random(rng, (2, 100), dtype)
    transform = np.fft.fft if dtype == "complex64" else np.fft.rfft
    state = random(rng, (3, 2, 99), dtype)
    with linscan.use_engine(engine):
        for options in ({}, {"state": state}, {"mode": "bidirectional"}, {"mode": "circular"}):
            n = 300 if options == {"mode": "circular"} else 450
            y, want = (linscan.fft_conv(u, k, spectrum=s, **options) for s in (transform(k, n), None))
            if "state" in options:
                y, want = y[0], want[0]
            assert_close(y, want, 2 * transformed(dtype, n))
        doubled = linscan.fft_conv(u, k, spectrum=2 * transform(k, 450))
    assert_close(doubled, 2 * linscan.fft_conv(u, k), 2 * transformed(dtype, 450))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("complexity", ["", "u", "k", "uk"])
def test_gradient(rng, engine, method, complexity):
    kinds = ["complex128" if name in complexity else "float64" for name in "uk"]
    with linscan.use_engine(engine):
        for mode, (length, width) in itertools.product(MODES, [(9, 4), (5, 12), (1, 3)]):
            u, k = random(rng, (3, 1, length), kinds[0]), random(rng, (2, width), kinds[1])
            linscan.check_vjp(gradient_of(mode=mode, method=method), u, k, None)
        state, k = random(rng, (3, 1, 3), kinds[0]), random(rng, (2, 4), kinds[1])
        for length in (6, 2, 0):
            linscan.check_vjp(gradient_of(method=method), random(rng, (3, 1, length), kinds[0]), k, state)


def gradient_of(**options):
    return lambda u, k, state: linscan.fft_conv_vjp(u, k, state=state, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "shapes", [((4, 3, 2500), (3, 70)), ((2500, 4), (90, 1)), ((6000,), (2, 70)), ((2, 1, 80), (3, 99))]
)
def test_gradients_of_engines_agree_and_are_adjoint(rng, method, shapes):
    axis = 0 if shapes[0] == (2500, 4) else -1
    u, k = (random(rng, shape, "float32") for shape in shapes)
    results = []
    for engine in ENGINES:
        with linscan.use_engine(engine):
            y, pullback = linscan.fft_conv_vjp(u, k, axis, method=method)
            dy = random(np.random.default_rng(1), y.shape, "float32")
            results.append((y, *pullback(dy)[:2]))
    for got, want in zip(results[1], results[0], strict=True):
        assert got.dtype == np.float32
        assert_close(got, want, 4 * transformed("float32", 10_000) + summed("float32", y.size))
    inner = float(np.vdot(dy.astype(float), y.astype(float)))
    scale = transformed("float32", 10_000) * float(np.linalg.norm(dy) * np.linalg.norm(y)) * 4
    for x, dx in zip((u, k), results[1][1:], strict=True):
        assert abs(float(np.vdot(dx.astype(float), x.astype(float))) - inner) <= scale


def test_integer_list_scalar_state_and_empty_inputs():
    y, state = linscan.fft_conv([1, 2, 3], [1, 1], state=0)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, [1, 3, 5])
    np.testing.assert_array_equal(state, [3])
    for engine, mode, method in itertools.product(ENGINES, MODES, METHODS):
        with linscan.use_engine(engine):
            for u_shape, k_shape in [((0,), (3,)), ((3,), (0,)), ((0, 4), (2,)), ((2, 0), (0,))]:
                y, pullback = linscan.fft_conv_vjp(np.ones(u_shape), np.ones(k_shape), mode=mode, method=method)
                np.testing.assert_array_equal(y, np.zeros(u_shape))
                du, dk, _ = pullback(y)
                np.testing.assert_array_equal(du, np.zeros(u_shape))
                np.testing.assert_array_equal(dk, np.zeros(k_shape))


@pytest.mark.parametrize(
    ("args", "options", "match"),
    [
        (((2, 8), (3, 4)), {}, r"fft_conv: u and k must broadcast; got \(2,\) and \(3,\)"),
        (((8,), (4,)), {"mode": "same"}, "fft_conv: mode must be one of 'causal', 'bidirectional', 'circular'"),
        (((8,), (4,)), {"method": "fast"}, "fft_conv: method must be one of 'auto', 'direct', 'fft', 'blocked'"),
        (((8,), (4,)), {"mode": "circular", "state": 0}, "fft_conv: state needs mode 'causal'"),
        (((8,), (4,)), {"state": np.zeros(4)}, r"fft_conv: state must broadcast to \(3,\); got \(4,\)"),
        (((8,), (4,)), {"spectrum": np.zeros(5, complex)}, "fft_conv: spectrum must be the transform of k with"),
        (((8,), (4,)), {"spectrum": np.zeros(9, complex), "method": "direct"}, "fft_conv: spectrum needs method"),
        (((2, 3, 8), (3, 4)), {"axis": 0}, r"fft_conv: k of shape \(3, 4\) has no axis -3"),
    ],
)
def test_errors(args, options, match):
    with pytest.raises(ValueError, match=match):
        linscan.fft_conv(*map(np.ones, args), **options)


def test_wrong_axis_and_cotangent(rng):
    with pytest.raises(np.exceptions.AxisError, match="fft_conv: axis 2 is out of bounds"):
        linscan.fft_conv(np.ones(3), np.ones(3), axis=2)
    _, pullback = linscan.fft_conv_vjp(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match=r"fft_conv_vjp: dy must have shape \(3,\); got \(2,\)"):
        pullback(np.ones(2))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("modes", list(itertools.product(MODES, MODES)))
def test_two_axes(rng, engine, modes):
    with linscan.use_engine(engine):
        for (shape, taps), dtype in itertools.product([((3, 5), (2, 3)), ((4, 2), (7, 1)), ((1, 6), (3, 9))], DTYPES):
            u, k = random(rng, shape, dtype), random(rng, taps, dtype)
            y = linscan.fft_conv_nd(u, k, mode=modes)
            assert y.dtype == dtype_of(dtype)
            assert_close(y, oracles.conv2(u, k, modes), transformed(dtype, 200) + eps(dtype))
        linscan.check_vjp(linscan.fft_conv_nd_vjp, rng.standard_normal((4, 3)), rng.standard_normal((6, 2)), mode=modes)


@pytest.mark.parametrize("engine", ENGINES)
def test_axes_anywhere_and_broadcast(rng, engine):
    u, k = random(rng, (2, 5, 3, 4), "complex128"), random(rng, (1, 3, 3, 2), "float64")
    with linscan.use_engine(engine):
        y = linscan.fft_conv_nd(u, k, axes=(1, -1), mode=("bidirectional", "causal"))
        linscan.check_vjp(linscan.fft_conv_nd_vjp, u, k, axes=(1, -1), mode=("bidirectional", "causal"))
        linscan.check_vjp(linscan.fft_conv_nd_vjp, u.real, k, axes=(3, 1, 2), mode="circular")
        u[1, 2, 0, 1] = np.nan
        reached = np.isnan(linscan.fft_conv_nd(u, k, axes=(1, -1)))
    assert y.flags.c_contiguous
    assert_close(
        y[0, :, 2], oracles.conv2(u[0, :, 2], k[0, :, 2], ("bidirectional", "causal")), transformed("float64", 99)
    )
    want = np.zeros(u.shape, bool)
    want[1, 2:5, 0, 1:3] = True
    np.testing.assert_array_equal(reached, want)


def test_nd_errors():
    u = np.ones((3, 4))
    with pytest.raises(ValueError, match="fft_conv_nd: u and k must have the same number of axes"):
        linscan.fft_conv_nd(u, np.ones(3))
    with pytest.raises(ValueError, match="fft_conv_nd: axes must be different"):
        linscan.fft_conv_nd(u, u, axes=(0, -2))
    with pytest.raises(ValueError, match="fft_conv_nd: mode must be one of"):
        linscan.fft_conv_nd(u, u, mode="full")
