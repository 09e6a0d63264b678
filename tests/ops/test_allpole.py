"""Laws of `allpole` and its gradient, on every engine that runs on the CPU."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import dtype_of, random
from tests.tolerances import assert_close, eps, stable

ENGINES = ["reference", "cpu"]
FULL = ["float32", "float64", "complex64", "complex128"]


def coefficients(rng, shape, taps, dtype):
    """Coefficients (*shape, taps) whose moduli add up to at most 0.8: stable however they change."""
    return (0.8 / max(1, taps) * random(rng, (*shape, taps), dtype).clip(-1, 1)).astype(dtype_of(dtype))


def expected(a, x, zi, axis):
    """The oracle on every row: y with time at `axis`, and the final state (rows, K)."""
    shape = np.broadcast_shapes(a.shape[:-1], x.shape)
    axis %= len(shape)
    a, x = np.broadcast_to(a, (*shape, a.shape[-1])), np.broadcast_to(x, shape)
    a, x = np.moveaxis(a, axis, -2), np.moveaxis(x, axis, -1)
    zi = np.broadcast_to(zi, (*x.shape[:-1], a.shape[-1]))
    y, zf = np.empty(x.shape, np.complex128), np.empty(zi.shape, np.complex128)
    for row in np.ndindex(x.shape[:-1]):
        y[row], zf[row] = oracles.allpole(a[row], x[row], zi[row])
    return np.moveaxis(y, -1, axis), zf


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("taps", [0, 1, 2, 5])
def test_equals_the_loop(rng, engine, dtype, taps):
    for length in (0, 1, 3, 70):
        a, x = coefficients(rng, (2, length), taps, dtype), random(rng, (2, length), dtype)
        zi = random(rng, (2, taps), dtype)
        with linscan.use_engine(engine):
            y, zf = linscan.allpole(a, x, zi)
            alone = linscan.allpole(a, x)
        assert y.dtype == zf.dtype == dtype_of(dtype)
        want, state = expected(a, x, zi, -1)
        assert_close(y, want, stable(dtype))
        assert_close(zf, state, stable(dtype))
        assert_close(alone, expected(a, x, 0 * zi, -1)[0], stable(dtype))


def test_long_rows_pass_the_kernel_window(rng):
    a, x = coefficients(rng, (2, 2500), 3, "float64"), random(rng, (2, 2500), "float64")
    assert_close(linscan.allpole(a, x), expected(a, x, np.zeros(3), -1)[0], stable("float64"))


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    length=st.integers(1, 30),
    axis=st.integers(0, 2),
    constant=st.booleans(),
    flipped=st.booleans(),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_axis_layout_and_broadcasting(shape, length, axis, constant, flipped, engine, seed):
    rng = np.random.default_rng(seed)
    axis %= len(shape)
    shape[axis] = length
    a = coefficients(rng, () if constant else tuple(shape), 2, "float64")
    x, zi = random(rng, tuple(shape), "float64"), random(rng, (2,), "float64")
    if flipped:
        a, x = a[::-1].copy()[::-1], np.asfortranarray(x)
    x.flags.writeable = False
    with linscan.use_engine(engine):
        y, zf = linscan.allpole(a, x, zi, axis=axis - len(shape))
    want, state = expected(a, x, zi, axis)
    assert_close(y, want, stable("float64"))
    assert_close(zf, state, stable("float64"))
    assert y.flags.c_contiguous


def test_constant_coefficients_are_an_lfilter(rng):
    a, x = coefficients(rng, (), 3, "float64"), random(rng, (4, 50), "float64")
    assert_close(linscan.allpole(a, x), linscan.lfilter(1.0, np.concatenate([[1.0], a]), x), stable("float64"))


def test_one_lag_is_a_scan(rng):
    a, x = coefficients(rng, (50,), 1, "complex128"), random(rng, (4, 50), "complex128")
    assert_close(linscan.allpole(a, x), linscan.scan(-a[:, 0], x), stable("complex128"))


@given(cuts=st.lists(st.integers(0, 60), max_size=5), dtype=st.sampled_from(["float32", "complex128"]))
def test_pieces_and_workers_have_the_bits_of_one_call(cuts, dtype):
    rng = np.random.default_rng(1)
    a, x, zi = coefficients(rng, (3, 60), 4, dtype), random(rng, (3, 60), dtype), random(rng, (3, 4), dtype)
    whole, end = linscan.allpole(a, x, zi)
    parts = []
    for lo, hi in pairwise([0, *sorted(cuts), 60]):
        y, zi = linscan.allpole(a[:, lo:hi], x[:, lo:hi], zi)
        parts.append(y)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(zi, end)
    np.testing.assert_array_equal(linscan.allpole(a[1:2], x[1:2]), linscan.allpole(a, x, workers=2)[1:2])


def test_storage_in_16_bit_and_nan(rng):
    a, x = (v.astype(np.float16) for v in (coefficients(rng, (20,), 2, "float32"), random(rng, (2, 20), "float32")))
    y = linscan.allpole(a, x)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, linscan.allpole(a.astype("f"), x.astype("f")).astype(np.float16))
    dirty = x.copy()
    dirty[1, 7] = np.nan
    after = linscan.allpole(a, dirty)
    assert np.isnan(after[1, 7:]).all()
    after[1, 7:] = y[1, 7:]
    np.testing.assert_array_equal(after, y)


def test_errors_say_what_was_needed():
    with pytest.raises(ValueError, match=r"allpole: a_without_lags and x must broadcast; got \(2,\) and \(3,\)"):
        linscan.allpole(np.ones((2, 1)), np.ones(3))
    with pytest.raises(ValueError, match=r"allpole: zi must broadcast to \(2, 1\); got \(3, 1\)"):
        linscan.allpole([0.5], np.ones((2, 4)), np.ones((3, 1)))
    with pytest.raises(np.exceptions.AxisError, match="allpole: axis 1"):
        linscan.allpole([0.5], np.ones(4), axis=1)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("taps", [0, 1, 3])
def test_gradients(rng, dtype, taps):
    def vjp(a, x, zi):
        return linscan.allpole_vjp(a, x, zi, 0)

    for length in (0, 1, 2, 9):
        a, x = coefficients(rng, (length, 2), taps, dtype), random(rng, (length, 2), dtype)
        linscan.check_vjp(vjp, a, x, random(rng, (2, taps), dtype))
    linscan.check_vjp(vjp, coefficients(rng, (9, 1), taps, dtype), x, random(rng, (taps,), dtype))
    linscan.check_vjp(vjp, coefficients(rng, (), taps, dtype), x, random(rng, (2, 1), dtype))
    y, pullback = linscan.allpole_vjp(a, x, axis=0)
    assert pullback(y)[2] is None
    assert_close(pullback(y)[1], vjp(a, x, np.zeros((2, taps), dtype))[1](y, None)[1], eps(dtype))
