"""`check_vjp` passes what is right, and names what is wrong."""

import numpy as np
import pytest

from linscan import check_vjp

X, Y = np.random.default_rng(0).normal(size=(2, 3, 4))


def product_vjp(x, y, *, break_x=1.0, break_y=0.0):
    """z = x y, and optionally a wrong pullback."""

    def pullback(dz):
        dz = np.zeros(np.shape(x * y)) if dz is None else dz
        return break_x * dz * np.conj(y), dz * np.conj(x) + break_y

    return x * y, pullback


def two_outputs_vjp(x, y):
    def pullback(ds, dd):
        ds, dd = (np.zeros(x.shape) if g is None else g for g in (ds, dd))
        return ds + dd, None if y is None else ds - dd

    other = 0.0 if y is None else y
    return (x + other, x - other), pullback


def test_right_gradients_pass_and_errors_are_reported():
    assert set(check_vjp(product_vjp, X, Y)) == {"x", "y"}
    assert max(check_vjp(product_vjp, X + 1j * Y, Y - 1j * X).values()) <= 1
    assert set(check_vjp(two_outputs_vjp, X, Y)) == {"x", "y"}
    assert set(check_vjp(two_outputs_vjp, X, None)) == {"x"}
    assert set(check_vjp(product_vjp, X, Y, method="complex")) == {"x", "y"}


@pytest.mark.parametrize("method", ["central", "complex"])
@pytest.mark.parametrize("factor", [1 + 1e-5, -1.0, 0.0])
def test_a_wrong_gradient_is_named_with_its_size(method, factor):
    with pytest.raises(AssertionError, match=r"argument 'x' is wrong: .* \(off by .*, allowed"):
        check_vjp(product_vjp, X, Y, method=method, break_x=factor)


def test_a_missing_conjugate_is_found():
    def unconjugated_vjp(x):
        return x * x, lambda dz: (np.zeros_like(x) if dz is None else 2 * dz * x,)

    check_vjp(unconjugated_vjp, X)
    with pytest.raises(AssertionError, match="argument 'x' is wrong"):
        check_vjp(unconjugated_vjp, X + 1j * Y)


def test_a_pullback_that_is_not_linear_is_found():
    with pytest.raises(AssertionError, match="argument 'y' is not linear in the cotangents"):
        check_vjp(product_vjp, X, Y, break_y=1e-3)


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        (lambda dx: (dx,), "returned 1 gradients for 2 arguments"),
        (lambda dx: (dx, None), "argument 'y' got no gradient"),
        (lambda dx: (dx[0], dx), r"argument 'x' has shape \(4,\) and dtype float64; the argument has \(3, 4\)"),
        (lambda dx: (dx.astype(np.float32), dx), "dtype float32"),
    ],
)
def test_the_form_of_the_gradients_is_checked(grads, message):
    def sum_vjp(x, y):
        return x + y, lambda dz: grads(np.zeros_like(x) if dz is None else dz)

    with pytest.raises(AssertionError, match=message):
        check_vjp(sum_vjp, X, Y)


def test_a_gradient_for_none_is_refused():
    def ignore_vjp(x, y):
        return x, lambda dz: (np.zeros_like(x) if dz is None else dz, 0.0)

    with pytest.raises(AssertionError, match="argument 'y' is None but got a gradient"):
        check_vjp(ignore_vjp, X, None)


def test_bad_calls():
    with pytest.raises(ValueError, match="method must be one of 'central', 'complex'; got 'forward'"):
        check_vjp(product_vjp, X, Y, method="forward")
    with pytest.raises(TypeError, match="argument 0 must be float64 or complex128; got float32"):
        check_vjp(product_vjp, X.astype(np.float32), Y)
    with pytest.raises(ValueError, match="the complex step needs real arguments"):
        check_vjp(product_vjp, X * 1j, Y, method="complex")


def test_zeros_and_empty_arguments():
    check_vjp(product_vjp, np.zeros((2, 2)), np.ones((2, 2)))
    check_vjp(product_vjp, np.zeros((0, 2)), np.ones((0, 2)))
