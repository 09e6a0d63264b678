"""Laws of `ssm_kernel_dense` and `ssm_kernel_dense_vjp`. They are array code without an engine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import assert_close, matrix, powers

LENGTHS = [0, 1, 2, 3, 4, 5, 16, 17, 64, 65, 300]


def stable_matrix(rng, shape, dtype, radius=0.95):
    """Random matrices whose eigenvalues are inside the unit circle."""
    A = oracles.wide(random(rng, shape, "complex128" if dtype_of(dtype).kind == "c" else "float64"))
    size = np.abs(np.linalg.eigvals(A)).max(axis=-1)[..., None, None] if shape[-1] else 1.0
    return (radius * A / size).astype(dtype_of(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_loop(rng, dtype, length):
    A, B, C = stable_matrix(rng, (4, 4), dtype), random(rng, (4, 2), dtype), random(rng, (3, 4), dtype)
    k = linscan.ssm_kernel_dense(A, B, C, length)
    assert k.dtype == dtype_of(dtype)
    assert_close(k, oracles.ssm_kernel_dense(A, B, C, length), matrix(dtype))


@given(
    leads=st.sampled_from([((), (), ()), ((3,), (), (2, 1)), ((2, 1), (3,), ()), ((), (), (0,)), ((1,), (2,), (1,))]),
    sizes=st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)),
    length=st.integers(0, 70),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    flipped=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_and_layout(leads, sizes, length, dtype, flipped, seed):
    rng = np.random.default_rng(seed)
    n, m, p = sizes
    arrays = [
        stable_matrix(rng, (*leads[0], n, n), dtype),
        random(rng, (*leads[1], n, m), dtype),
        random(rng, (*leads[2], p, n), dtype),
    ]
    if flipped:
        arrays = [x[..., ::-1, ::-1].copy()[..., ::-1, ::-1] for x in arrays]
    for x in arrays:
        x.flags.writeable = False
    k = linscan.ssm_kernel_dense(*arrays, length)
    assert_close(k, oracles.ssm_kernel_dense(*arrays, length), matrix(dtype))


def test_vectors_drop_their_axis_as_in_matmul(rng):
    A, B, C = stable_matrix(rng, (2, 3, 3), "float64"), random(rng, (3, 1), "float64"), random(rng, (1, 3), "float64")
    k = linscan.ssm_kernel_dense(A, B, C, 7)
    assert k.shape == (2, 7, 1, 1)
    np.testing.assert_array_equal(linscan.ssm_kernel_dense(A, B[:, 0], C, 7), k[..., 0])
    np.testing.assert_array_equal(linscan.ssm_kernel_dense(A, B, C[0], 7), k[..., 0, :])
    np.testing.assert_array_equal(linscan.ssm_kernel_dense(A, B[:, 0], C[0], 7), k[..., 0, 0])


def test_growing_modes_equal_the_loop():
    """Squares of A overflow long before the kernel does, and a mode that B does not excite stays at zero."""
    A = np.diag([1.02, 0.5, -1.01])
    with np.errstate(all="ignore"):
        want = oracles.ssm_kernel_dense(A, np.ones((3, 1)), np.ones((1, 3)), 40_000)[:, 0, 0]
    k = linscan.ssm_kernel_dense(A, np.ones(3), np.ones(3), 40_000)
    end = int(np.argmin(np.isfinite(want)))
    assert end > 35_000
    np.testing.assert_allclose(k[:end], want[:end], rtol=powers("float64", 40_000))
    assert not np.isfinite(k[end + 300 :]).any()
    A = np.array([[0.5, 0.0], [0.0, 3.0]])
    np.testing.assert_array_equal(linscan.ssm_kernel_dense(A, [1, 0], [1, 1], 3000), 0.5 ** np.arange(3000.0))


@pytest.mark.parametrize("measure", ["legs", "legt"])
def test_single_precision_on_an_ill_conditioned_matrix(measure):
    A, B = linscan.hippo(measure, 32)
    A_bar, B_bar = (np.asarray(x, np.float32) for x in linscan.discretize(A, B, 0.02, "bilinear"))
    B_bar = B_bar.reshape(32)
    k = linscan.ssm_kernel_dense(A_bar, B_bar, np.ones(32, np.float32), 2000)
    want = oracles.ssm_kernel_dense(A_bar, B_bar[:, None], np.ones((1, 32)), 2000)[:, 0, 0]
    assert_close(k, want, matrix("float32"))


def test_a_diagonal_matrix_is_ssm_kernel(rng):
    a = rng.uniform(0.9, 1, 6) * np.exp(1j * rng.uniform(0, 3, 6))
    B, C = random(rng, (6,), "complex128"), random(rng, (6,), "complex128")
    k = linscan.ssm_kernel_dense(np.diag(a), B, C, 500)
    assert_close(k, linscan.ssm_kernel(a, B * C, 500, real=False), powers("complex128", 500))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("length", [0, 1, 2, 5, 16, 33])
def test_gradients(rng, dtype, length):
    A, B, C = stable_matrix(rng, (3, 3), dtype, 0.7), random(rng, (3, 2), dtype), random(rng, (2, 3), dtype)
    linscan.check_vjp(linscan.ssm_kernel_dense_vjp, A, B, C, length=length)
    linscan.check_vjp(linscan.ssm_kernel_dense_vjp, A, B[:, 0], C[0], length=length)


def test_gradients_of_broadcast_and_mixed_arguments(rng):
    A, B = stable_matrix(rng, (2, 1, 3, 3), "float64", 0.7), random(rng, (3, 3, 2), "complex128")
    C = random(rng, (1, 3), "float64")
    linscan.check_vjp(linscan.ssm_kernel_dense_vjp, A, B, C, length=9)
    linscan.check_vjp(linscan.ssm_kernel_dense_vjp, A, B, C[0], length=9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_keep_their_dtype_and_size(rng, dtype):
    A, B, C = stable_matrix(rng, (2, 3, 3), dtype), random(rng, (3, 1), dtype), random(rng, (2, 1, 3), dtype)
    k, pullback = linscan.ssm_kernel_dense_vjp(A, B, C, 12)
    g = random(rng, k.shape, dtype)
    for cotangent in (None, g):
        for x, d in zip((A, B, C), pullback(cotangent), strict=True):
            assert (d.dtype, d.shape) == (x.dtype, x.shape)
    exact = linscan.ssm_kernel_dense_vjp(*map(oracles.wide, (A, B, C)), 12)[1](oracles.wide(g))
    for got, want in zip(pullback(g), exact, strict=True):
        assert_close(got, want, matrix(dtype))


def test_errors_say_who_what_and_what_came():
    eye = np.eye(3)
    shapes = (
        r"ssm_kernel_dense: A, B and C must have shapes \(\.\.\., N, N\), \(\.\.\., N, M\) and \(\.\.\., P, N\); got "
    )
    with pytest.raises(ValueError, match=shapes + r"\(3, 3\), \(4,\) and \(3,\)"):
        linscan.ssm_kernel_dense(eye, np.ones(4), np.ones(3), 5)
    with pytest.raises(ValueError, match=shapes + r"\(3,\), \(3,\) and \(3,\)"):
        linscan.ssm_kernel_dense(np.ones(3), np.ones(3), np.ones(3), 5)
    with pytest.raises(ValueError, match=shapes + r"\(3, 3\), \(\) and \(3,\)"):
        linscan.ssm_kernel_dense(eye, 1.0, np.ones(3), 5)
    with pytest.raises(
        ValueError, match=r"ssm_kernel_dense: A and B and C must broadcast; got \(\) and \(2,\) and \(3,\)"
    ):
        linscan.ssm_kernel_dense(eye, np.ones((2, 3, 1)), np.ones((3, 1, 3)), 5)
    with pytest.raises(ValueError, match=r"ssm_kernel_dense: length must be at least 0; got -2"):
        linscan.ssm_kernel_dense(eye, np.ones(3), np.ones(3), -2)
    with pytest.raises(ValueError, match=r"ssm_kernel_dense_vjp: dk must have shape \(5,\); got \(4,\)"):
        linscan.ssm_kernel_dense_vjp(eye, np.ones(3), np.ones(3), 5)[1](np.ones(4))
