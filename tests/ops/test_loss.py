"""Laws of the losses."""

import numpy as np
import pytest

import linscan
from linscan.ops import loss
from tests import oracles
from tests.conftest import random
from tests.tolerances import assert_close, eps, summed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_cross_entropy_equals_the_loop(rng, dtype, shape, masked):
    logits, labels = random(rng, (*shape, 6), dtype), rng.integers(0, 6, shape)
    mask = rng.random(shape) < 0.6 if masked else np.ones(shape, bool)
    value = loss.cross_entropy(logits, labels, mask if masked else None)
    assert value.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert_close(value, oracles.cross_entropy(logits, labels, np.asarray(mask)), summed(value.dtype, 15))


def test_cross_entropy_of_large_logits_and_no_labels(rng):
    logits = np.array([[1e4, 0.0], [0.0, -1e4]])
    assert loss.cross_entropy(logits, [0, 1]) == 5e3
    value, pullback = loss.cross_entropy_vjp(logits, [-100, -100], np.zeros(2, bool))
    assert value == 0
    np.testing.assert_array_equal(pullback(1.0)[0], np.zeros((2, 2)))


def test_gradients(rng):
    logits, labels = random(rng, (3, 5, 4), "float64"), rng.integers(0, 4, (3, 5))
    for mask in (None, rng.random((3, 5)) < 0.5):
        ignored = labels if mask is None else np.where(mask, labels, -100)
        linscan.check_vjp(lambda z, n=ignored, m=mask: first(loss.cross_entropy_vjp(z, n, m)), logits)
        mask = None if mask is None else mask[..., None]
        linscan.check_vjp(
            lambda y, t, m=mask: (loss.mse_vjp(y, t, m)[0], lambda g: loss.mse_vjp(y, t, m)[1](g)[:2]),
            logits,
            random(rng, (3, 5, 4), "float64"),
        )
    half = random(rng, (3, 4), "float16")
    assert loss.cross_entropy_vjp(half, [0, 1, 2])[1](np.float32(1))[0].dtype == np.float16


def first(result):
    return result[0], lambda g: result[1](g)[0]


def test_mse_counts_what_the_mask_says(rng):
    y, target = random(rng, (4, 3), "float64"), random(rng, (4, 3), "float64")
    mask = np.array([True, False, True, True])[:, None]
    assert_close(loss.mse(y, target), ((y - target) ** 2).sum() / 12, 4 * eps("float64"))
    assert_close(loss.mse(y, target, mask), ((y - target)[[0, 2, 3]] ** 2).sum() / 9, 4 * eps("float64"))
    y[1] = np.nan  # what does not count may be anything
    assert np.isfinite(loss.mse(y, target, mask))


def test_errors_say_who_what_and_what_came():
    z = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"cross_entropy: logits and labels must have shapes .*; got \(2, 3\), \(3,\)"):
        loss.cross_entropy(z, [0, 1, 2])
    with pytest.raises(ValueError, match=r"cross_entropy: labels must lie in 0 … 2; got 0 … 3"):
        loss.cross_entropy(z, [0, 3])
    with pytest.raises(TypeError, match=r"cross_entropy: labels must be integers; got float64"):
        loss.cross_entropy(z, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"mse: y and target must have one shape; got \(2, 3\) and \(2,\)"):
        loss.mse(z, z[:, 0])
    with pytest.raises(TypeError, match=r"mse: mask must be boolean; got int64"):
        loss.mse(z, z, np.ones((2, 3), int))
