"""Laws of `short_conv`, `short_conv_step` and `short_conv_vjp`, on every engine that runs on the CPU."""

import itertools

import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import assert_close, eps, summed

ENGINES = ["reference", "cpu"]
LAYOUTS = [-2, -1]


def case(rng, length, channels, width, dtype, dilation=1):
    shapes = (length, channels), (channels, width), (channels,), ((width - 1) * dilation, channels)
    return [random(rng, shape, dtype) for shape in shapes]


def laid(x, axis):
    """(…, T, D) as it is, or with time last."""
    return x if axis == -2 or x is None else np.ascontiguousarray(np.swapaxes(x, -1, -2))


def tolerance(dtype, width):
    return summed(dtype, width + 1) + eps(dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("axis", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_loop(rng, engine, axis, dtype):
    for length, channels, width in [(1, 1, 1), (2, 3, 4), (30, 1, 2), (31, 5, 3), (600, 3, 7), (5, 2, 9), (300, 4, 16)]:
        u, w, bias, state = case(rng, length, channels, width, dtype)
        want, last = oracles.short_conv(u, w, bias, state)
        fresh, _ = oracles.short_conv(u, w, bias, 0 * state)
        with linscan.use_engine(engine):
            y, end = linscan.short_conv(laid(u, axis), w, bias, laid(state, axis), axis=axis)
            alone = linscan.short_conv(laid(u, axis), w, bias, axis=axis)
        assert y.dtype == alone.dtype == dtype_of(dtype)
        assert y.flags.c_contiguous
        assert_close(laid(y, axis), want, tolerance(dtype, width))
        assert_close(laid(alone, axis), fresh, tolerance(dtype, width))
        np.testing.assert_array_equal(laid(end, axis).astype(last.dtype), last)


@given(
    length=st.integers(0, 40),
    channels=st.integers(1, 4),
    width=st.integers(1, 6),
    dilation=st.integers(1, 3),
    axis=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    reverse=st.booleans(),
    with_reset=st.booleans(),
    with_state=st.booleans(),
    strided=st.booleans(),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_state_direction_dilation_and_reset(
    length, channels, width, dilation, axis, dtype, reverse, with_reset, with_state, strided, engine, seed
):
    rng = np.random.default_rng(seed)
    u, w, bias, state = case(rng, length, channels, width, dtype, dilation)
    state = state if with_state else 0 * state
    reset = rng.random(length) < 0.2 if with_reset else None
    want, last = oracles.short_conv(u, w, bias, state, dilation, reverse, reset)
    options = {"axis": axis, "dilation": dilation, "reverse": reverse}
    options["reset"] = None if reset is None else reset[:, None] if axis == -2 else reset
    x = laid(u, axis)
    x = np.repeat(x, 2, axis=-1)[..., ::2] if strided else x
    x.flags.writeable = False
    with linscan.use_engine(engine):
        y, end = linscan.short_conv(x, w, bias, laid(state, axis), **options)
    assert_close(laid(y, axis), want, tolerance(dtype, width))
    np.testing.assert_array_equal(laid(end, axis), last)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("channels", [3, 600, 1500])
def test_batches_heads_and_many_channels(rng, engine, channels):
    u, w = rng.standard_normal((2, 3, 50, channels)), rng.standard_normal((3, channels, 4))
    bias = rng.standard_normal((3, 1))
    starts = rng.random((2, 1, 50, 1)) < 0.1
    with linscan.use_engine(engine):
        y = linscan.short_conv(u, w, bias, reset=starts)
        middle = linscan.short_conv(np.moveaxis(u, 2, 1), w, bias, axis=1, reset=np.moveaxis(starts, 2, 1))
    np.testing.assert_array_equal(np.moveaxis(middle, 1, 2), y)
    for b, h in itertools.product(range(2), range(3)):
        nothing = np.zeros((3, channels))
        full = np.broadcast_to(bias[h], channels)
        want, _ = oracles.short_conv(u[b, h], w[h], full, nothing, reset=starts[b, 0, :, 0])
        assert_close(y[b, h], want, tolerance("float64", 4))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("axis", LAYOUTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_split_anywhere_and_steps_give_the_same(rng, engine, axis, reverse):
    u, w, bias, state = case(rng, 40, 3, 4, "float64")
    reset = rng.random((40, 1)) < 0.15
    want, last = oracles.short_conv(u, w, bias, state, 1, reverse, reset[:, 0])
    with linscan.use_engine(engine):
        for cuts in [(0,), (1, 2, 3), (17,), (20, 20, 38, 39)]:
            parts = list(zip(np.split(u, cuts), np.split(reset, cuts), strict=True))
            ys, carried = [], laid(state, axis)
            for part, start in parts[::-1] if reverse else parts:
                flags = start if axis == -2 else start.T
                y, carried = linscan.short_conv(
                    laid(part, axis), w, bias, carried, axis=axis, reverse=reverse, reset=flags
                )
                ys.append(laid(y, axis))
            assert_close(np.concatenate(ys[::-1] if reverse else ys), want, tolerance("float64", 4))
            np.testing.assert_array_equal(laid(carried, axis), last)


@pytest.mark.parametrize("dilation", [1, 3])
def test_steps(rng, dilation):
    u, w, bias, state = case(rng, 20, 3, 4, "float32", dilation)
    y, last = linscan.short_conv(u, w, bias, state, dilation=dilation)
    for t in range(20):
        out, state = linscan.short_conv_step(u[t], w, bias, state, dilation=dilation)
        assert out.dtype == np.float32
        assert_close(out, y[t], tolerance("float32", 4))
    np.testing.assert_array_equal(state, last)


@pytest.mark.parametrize("axis", LAYOUTS)
def test_agrees_with_lfilter_and_fft_conv(rng, axis):
    u, w, _, _ = case(rng, 3000, 4, 5, "float64")
    y = laid(linscan.short_conv(laid(u, axis), w, axis=axis), axis)
    assert_close(
        y, np.stack([scipy.signal.lfilter(w[d], 1, u[:, d]) for d in range(4)], axis=1), tolerance("float64", 5)
    )
    assert_close(y, linscan.fft_conv(u, w.T, axis=0), tolerance("float64", 5))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("axis", LAYOUTS)
@np.errstate(invalid="ignore")
def test_nan_reaches_its_taps_in_its_sequence_only(rng, engine, axis):
    u, w, bias, state = case(rng, 700, 3, 4, "float64")
    reset = np.zeros((700, 1), bool)
    reset[602] = True
    u[100, 1] = u[600, 2] = np.nan
    state[1, 0] = np.inf
    with linscan.use_engine(engine):
        y, last = linscan.short_conv(
            laid(u, axis), w, bias, laid(state, axis), axis=axis, reset=reset if axis == -2 else reset.T
        )
        u[600, 2] = 0
        u[698] = np.nan
        reset[699] = True
        ended = linscan.short_conv(
            laid(u, axis), w, bias, laid(state, axis), axis=axis, reset=reset if axis == -2 else reset.T
        )[1]
    want = np.zeros((700, 3), bool)
    want[100:104, 1] = want[600:602, 2] = want[:2, 0] = True
    np.testing.assert_array_equal(~np.isfinite(laid(y, axis)), want)
    assert np.isfinite(last).all()
    np.testing.assert_array_equal(laid(ended, axis), np.stack([0 * u[699], 0 * u[699], u[699]]))


@pytest.mark.parametrize("axis", LAYOUTS)
def test_bits_depend_on_neither_workers_nor_other_rows(rng, axis):
    for channels in (5, 1100):
        u, w = random(rng, (3, 3000, channels), "float32"), random(rng, (channels, 4), "float32")
        x = laid(u, axis)
        y = linscan.short_conv(x, w, axis=axis)
        np.testing.assert_array_equal(linscan.short_conv(x[1], w, axis=axis), y[1])
        grads = []
        for workers in (1, 2, 5):
            again, pullback = linscan.short_conv_vjp(x, w, axis=axis, workers=workers)
            np.testing.assert_array_equal(again, y)
            grads.append(pullback(y))
        for du, dw, _, _ in grads[1:]:
            np.testing.assert_array_equal(du, grads[0][0])
            np.testing.assert_array_equal(dw, grads[0][1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("axis", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradient(rng, engine, axis, dtype, reverse):
    with linscan.use_engine(engine):
        for length, width, dilation in [(9, 4, 1), (2, 4, 1), (7, 3, 2), (0, 3, 1), (6, 1, 1)]:
            u, w, bias, state = case(rng, length, 2, width, dtype, dilation)
            u, state = (np.stack([x, 2 * x]) for x in (u, state))
            reset = rng.random((1, length, 1)) < 0.3
            options = {"axis": axis, "dilation": dilation, "reverse": reverse}
            flags = laid(reset, axis)
            linscan.check_vjp(linscan.short_conv_vjp, laid(u, axis), w, bias, laid(state, axis), **options, reset=flags)
            linscan.check_vjp(linscan.short_conv_vjp, laid(u, axis), w[0], None, None, **options, reset=flags)
            linscan.check_vjp(linscan.short_conv_vjp, laid(u, axis), w, bias[:1], 0.5, **options)


@pytest.mark.parametrize("axis", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 300, 1500])
def test_gradients_of_engines_agree(rng, axis, channels):
    u, w, bias, _ = case(rng, 1500, channels, 5, "float32")
    u = np.stack([u, u[::-1]])
    reset = laid(rng.random((2, 1500, 1)) < 0.01, axis)
    dy = random(rng, laid(u, axis).shape, "float32")
    grads = []
    for engine in ENGINES:
        with linscan.use_engine(engine):
            _, pullback = linscan.short_conv_vjp(laid(u, axis), w, bias, axis=axis, reset=reset)
            grads.append(pullback(dy)[:3])
    for got, want in zip(*grads, strict=True):
        assert got.dtype == np.float32
        assert_close(got, want, summed("float32", 3000))


@pytest.mark.parametrize("engine", ENGINES)
def test_reset_by_channel(rng, engine):
    u, w, bias, state = case(rng, 30, 2, 3, "float64")
    reset = rng.random((30, 2)) < 0.2
    with linscan.use_engine(engine):
        y, last = linscan.short_conv(u, w, bias, state, reset=reset)
        linscan.check_vjp(linscan.short_conv_vjp, u, w, bias, state, reset=reset)
    for d in range(2):
        one = slice(d, d + 1)
        want, end = oracles.short_conv(u[:, one], w[one], bias[one], state[:, one], reset=reset[:, d])
        assert_close(y[:, one], want, tolerance("float64", 3))
        np.testing.assert_array_equal(last[:, one], end)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda u: linscan.short_conv(u, np.ones((4, 2))),
            r"short_conv: w without its last axis must broadcast to \(3,\)",
        ),
        (lambda u: linscan.short_conv(u, np.ones((3, 0))), "short_conv: w needs at least one tap"),
        (lambda u: linscan.short_conv(u, np.ones(2), np.ones(2)), "short_conv: bias must broadcast"),
        (
            lambda u: linscan.short_conv(u, np.ones(2), state=np.ones((2, 3))),
            r"short_conv: state must broadcast to \(1, 3\)",
        ),
        (lambda u: linscan.short_conv(u, np.ones(2), dilation=0), "short_conv: dilation must be at least 1"),
        (lambda u: linscan.short_conv(u, np.ones(2), axis=2), "short_conv: axis 2 is out of bounds"),
        (lambda u: linscan.short_conv(u, np.ones(2), reset=np.ones(4, bool)), "short_conv: reset must broadcast"),
        (lambda u: linscan.short_conv_vjp(u, np.ones(2))[1](np.ones(3)), r"dy must have shape \(5, 3\)"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call(np.ones((5, 3)))
