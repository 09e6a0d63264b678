"""discretize, discretize_diag, undiscretize: exact where exactness is promised, SciPy's matrices elsewhere."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.signal import cont2discrete, lsim

from linscan import check_vjp, discretize, discretize_diag, discretize_diag_vjp, discretize_vjp, undiscretize
from linscan.engines.reference import phi
from linscan.ops.expm import expm, expm_adjoint, logm
from tests import oracles, tolerances
from tests.conftest import random

METHODS = ("zoh", "foh", "bilinear", "gbt", "euler", "backward_euler", "impulse", "zoh_euler")
EXPONENTIAL = ("zoh", "foh", "impulse", "zoh_euler")
IN_SCIPY = {name: name for name in METHODS if name != "zoh_euler"} | {"backward_euler": "backward_diff"}
DTYPES = ("float32", "float64", "complex64", "complex128")
every_method = pytest.mark.parametrize("method", METHODS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
both_kinds = pytest.mark.parametrize("dtype", ["float64", "complex128"])


def options(method):
    return {"alpha": 0.3} if method == "gbt" else {}


def system(seed, n=4, m=2, dtype="float64", lead=()):
    """A random stable system: eigenvalues in the left half plane, some of them fast."""
    rng = np.random.default_rng(seed)
    A = random(rng, (*lead, n, n), np.result_type(dtype, np.float64))
    reach = np.linalg.eigvals(A).real.max(axis=-1)
    A = A - (reach[..., None, None] + 0.1) * np.eye(n)
    return A.astype(dtype), random(rng, (*lead, n, m), dtype)


def close(got, want, factor=1.0):
    """Within `factor` times the tolerance of `got`'s dtype."""
    tolerances.assert_close(got, want, factor * tolerances.matrix(got.dtype))


# Against SciPy


@every_dtype
@pytest.mark.parametrize("method", IN_SCIPY)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 7), m=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_is_scipys_system(method, dtype, seed, n, m):
    A, B = system(seed, n, m, dtype)
    C, D = random(np.random.default_rng(seed), (2, n), dtype), np.zeros((2, m), dtype)
    step = 0.37
    got = discretize(A, B, step, method, **options(method))
    assert all(x.dtype == dtype for x in got)
    A, B, C, D = map(oracles.wide, (A, B, C, D))
    A_bar, B_bar, *B_prev = map(oracles.wide, got)
    want_A, want_B, want_C, want_D, _ = cont2discrete(
        (A, B, C, D), step, IN_SCIPY[method], alpha=options(method).get("alpha")
    )
    tolerances.assert_close(A_bar, want_A, tolerances.matrix(dtype))
    if method == "foh":  # SciPy's state is x[k] - B_bar u[k]
        tolerances.assert_close(B_prev[0] + A_bar @ B_bar, want_B, 10 * tolerances.matrix(dtype))
        tolerances.assert_close(C @ B_bar, want_D, 10 * tolerances.matrix(dtype))
    else:
        alpha = {"bilinear": 0.5, "backward_euler": 1.0, "gbt": 0.3}.get(method, 0.0)
        direct = step * C @ B if method == "impulse" else alpha * C @ B_bar
        tolerances.assert_close(B_bar, want_B, tolerances.matrix(dtype))
        tolerances.assert_close(C @ np.linalg.inv(np.eye(n) - alpha * step * A), want_C, tolerances.matrix("float64"))
        tolerances.assert_close(direct, want_D, 10 * tolerances.matrix(dtype))


def test_foh_steps_as_lsim_interpolates():
    A, B = system(3, 3, 2)
    u = np.random.default_rng(0).standard_normal((20, 2))
    _, _, want = lsim((A, B, np.eye(3), np.zeros((3, 2))), u, np.arange(20) * 0.2)
    A_bar, B_bar, B_prev = discretize(A, B, 0.2, "foh")
    x = np.zeros(3)
    for t in range(1, 20):
        x = A_bar @ x + B_bar @ u[t] + B_prev @ u[t - 1]
        np.testing.assert_allclose(x, want[t], rtol=1e-12, atol=1e-13)


# Exactness


@both_kinds
@pytest.mark.parametrize("method", ["zoh", "foh"])
def test_holds_are_exact_solutions(method, dtype):
    A, B = system(5, 4, 2, dtype)
    rng = np.random.default_rng(1)
    x, u0, u1 = random(rng, 4, dtype), random(rng, 2, dtype), random(rng, 2, dtype)
    A_bar, B_bar, *B_prev = discretize(A, B, 0.5, method)
    got = A_bar @ x + B_bar @ u1 + (B_prev[0] @ u0 if B_prev else 0)
    np.testing.assert_allclose(got, oracles.ode_step(A, B, x, u0 if B_prev else u1, u1, 0.5), rtol=1e-10)


@every_dtype
@pytest.mark.parametrize("dt", [1e-8, 1e-3, 0.5, 30.0])
def test_double_integrator_and_zero_matrix(dtype, dt):
    dt = float(np.float32(dt))
    double = np.array([[0, 1], [0, 0]], dtype)
    force = np.array([[0], [1]], dtype)
    A_bar, B_bar = discretize(double, force, dt)
    np.testing.assert_allclose(A_bar, np.array([[1, dt], [0, 1]]), rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(B_bar, np.array([[dt**2 / 2], [dt]]), rtol=4 * np.finfo(dtype).eps)
    A_bar, B_bar, B_prev = discretize(0 * double, force, dt, "foh")
    np.testing.assert_array_equal(A_bar, np.eye(2))
    np.testing.assert_allclose(B_bar, force * dt / 2, rtol=2 * np.finfo(dtype).eps)
    np.testing.assert_allclose(B_prev, force * dt / 2, rtol=2 * np.finfo(dtype).eps)


@every_method
@both_kinds
def test_diagonal_form_is_the_dense_one(method, dtype):
    a = np.array([-0.3, 0, -4, 0.2, -30], dtype)
    if a.dtype.kind == "c":
        a = a + 1j * np.array([0, 0, 5, -1, 40])
    dense = discretize(np.diag(a), np.eye(5), 0.2, method, **options(method))
    diagonal = discretize_diag(a, 0.2, method, **options(method))
    assert len(dense) == len(diagonal)
    for matrix, vector in zip(dense, diagonal, strict=True):
        np.testing.assert_allclose(matrix, np.diag(vector), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64", "complex128"])
@pytest.mark.parametrize("method", METHODS)
@given(
    size=st.floats(-30, 1.3), angle=st.floats(0, 2 * np.pi), dt=st.floats(2.0**-13, 1.0, width=32),
)  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_diagonal_is_exact_to_a_few_eps(method, dtype, size, angle, dt):
    is_complex = np.dtype(dtype).kind == "c"
    turn = np.exp(1j * angle) if is_complex else np.sign(np.cos(angle))
    a = np.asarray(10.0**size * turn / dt, dtype)
    z = a.astype("complex128" if is_complex else "float64") * dt
    alpha = {"bilinear": 0.5, "backward_euler": 1.0, "gbt": 0.3, "euler": 0.0}.get(method)
    if alpha is None:
        orders = {"zoh": [(1, 0)], "foh": [(2, 0), (1, 1)], "impulse": [(0, 0)], "zoh_euler": []}[method]
        want = [oracles.phi_exact(0, z), *(oracles.phi_exact(k, z, order) for k, order in orders), 1.0]
    elif abs(1 - alpha * z) < 1e-3:
        return
    else:
        want = (1 + (1 - alpha) * z) / (1 - alpha * z), 1 / (1 - alpha * z)
    got = discretize_diag(a, dt, method, **options(method))
    # Double precision rounds z = dt a, and by that the exponential by |z| eps; single precision is rounded once.
    eps = np.finfo(dtype).eps * (2 if np.finfo(dtype).eps > 1e-10 else 24 + 4 * abs(z))
    for x, exact, scale in zip(got, want, (1, dt, dt), strict=False):
        assert x.dtype == dtype
        assert abs(x - exact * scale) <= eps * abs(exact * scale)


@both_kinds
def test_phi_functions_are_exact_to_a_few_eps(dtype):
    sizes = np.concatenate([10.0 ** np.arange(-12, 2), [0.4999, 0.999, 1.0, 1.001, 3.0, 0.0]])
    turns = np.exp(2j * np.pi * np.arange(5) / 5) if np.dtype(dtype).kind == "c" else np.array([1.0, -1.0])
    z = (sizes * turns[:, None]).ravel().astype(dtype)

    def exact(k, order=0):
        return np.array([oracles.phi_exact(k, x, order) for x in z])

    for got, want in (
        (phi.expm1(z), exact(1) * z),
        (phi.phi1(z), exact(1)),
        (phi.phi2(z), exact(2)),
        (phi.phi1_slope(z), exact(1, 1)),
        (phi.phi1_curve(z), exact(1, 2)),
        (phi.phi2_slope(z), exact(2, 1)),
    ):
        np.testing.assert_allclose(got, want, rtol=30 * np.finfo(np.float64).eps)


@pytest.mark.parametrize("dt", [0.05, 0.7])
def test_prewarp_maps_its_frequency_exactly(dt):
    frequency = 3.9
    A, B = system(11, 4, 1)
    C = np.random.default_rng(2).standard_normal((1, 4))
    A_bar, B_bar = discretize(A, B, dt, "bilinear", prewarp=frequency)
    rotation, _ = discretize_diag(1j * frequency, dt, "bilinear", prewarp=frequency)
    np.testing.assert_allclose(rotation, np.exp(1j * frequency * dt), rtol=1e-14)
    step = 2 / frequency * np.tan(frequency * dt / 2)
    C_bar = np.linalg.solve((np.eye(4) - step / 2 * A).T, C.T).T
    response = C_bar @ np.linalg.solve(np.exp(1j * frequency * dt) * np.eye(4) - A_bar, B_bar) + 0.5 * C @ B_bar
    np.testing.assert_allclose(response, C @ np.linalg.solve(1j * frequency * np.eye(4) - A, B), rtol=1e-12)
    plain, _ = discretize_diag(1j * frequency, dt, "bilinear")
    assert abs(plain - np.exp(1j * frequency * dt)) > 1e-5


# Shapes, dtypes, batches


@every_method
def test_batch_is_every_system_alone(method):
    A, B = system(7, 3, 2, lead=(4, 1))
    A[2] *= 40  # a stiff one: the others must not be squared along
    B = np.concatenate([B, 1e9 * B, B], axis=1)
    dt = np.array([0.1, 0.2, 1.5])
    batch = discretize(A, B, dt, method, **options(method))
    for i in range(4):
        for j in range(3):
            alone = discretize(A[i, 0], B[i, j], dt[j], method, **options(method))
            for x, y in zip(batch, alone, strict=True):
                np.testing.assert_array_equal(x[i, j], y)


@every_method
@pytest.mark.parametrize("dtype", [*DTYPES, "float16", ml_dtypes.bfloat16])
def test_dtype_is_kept(method, dtype):
    A, B = system(1, 3, 1, "float64")
    A, B = A.astype(dtype), B.astype(dtype)
    for x in discretize(A, B, 0.25, method, **options(method)):
        assert x.dtype == dtype
    for x in discretize_diag(A[0], np.array([0.25], dtype if A.dtype.kind != "c" else "f4"), method, **options(method)):
        assert x.dtype == dtype
    assert discretize_diag(np.array([-1, 0]), 1, method, **options(method))[1].dtype == np.float64


@every_method
def test_views_lists_and_empty_batches(method):
    A, B = system(9, 3, 2)
    want = discretize(A, B, 0.2, method, **options(method))
    strided, reverse = np.zeros((6, 6)), B[::-1].copy()[::-1]
    strided[::2, ::2] = A
    A.flags.writeable = reverse.flags.writeable = False
    for other in (
        discretize(strided[::2, ::2], reverse, [0.2], method, **options(method)),
        discretize(A.tolist(), B.tolist(), 0.2, method, **options(method)),
    ):
        for x, y in zip(want, other, strict=True):
            np.testing.assert_array_equal(x, y.reshape(x.shape))
    empty = discretize(A, B, np.zeros(0), method, **options(method))
    assert [x.shape for x in empty[:2]] == [(0, 3, 3), (0, 3, 2)]
    assert discretize(A, B[:, :0], 0.2, method, **options(method))[1].shape == (3, 0)
    assert discretize_diag(np.zeros((0, 4)), 0.1, method, **options(method))[0].shape == (0, 4)


@every_method
def test_nan_stays_in_its_system(method):
    A, B = system(13, 3, 1, lead=(3,))
    want = discretize(A, B, 0.1, method, **options(method))
    A[1, 0, 0] = np.nan
    with np.errstate(invalid="ignore"):
        got = discretize(A, B, 0.1, method, **options(method))
    for x, y in zip(want, got, strict=True):
        np.testing.assert_array_equal(x[::2], y[::2])
    assert np.isnan(got[0][1]).any()


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(2), np.ones((2, 1)), -0.1), "dt must be positive and finite; got -0.1"),
        ((np.eye(2), np.ones((2, 1)), [0.1, 0.0]), "dt must be positive and finite; got 0.0"),
        ((np.eye(2), np.ones((2, 1)), np.nan), "dt must be positive"),
        ((np.eye(2), np.ones((2, 1)), [[0.1], [np.inf]]), "dt must be positive and finite; got inf"),
        ((np.eye(2), np.ones((2, 1)), 0.1, "tustin"), "method must be one of 'zoh', 'foh', 'bilinear'"),
        ((np.ones((2, 3)), np.ones((2, 1)), 0.1), r"A must have shape \(\.\.\., N, N\); got \(2, 3\)"),
        ((np.ones((0, 0)), np.ones((0, 1)), 0.1), r"A must have shape \(\.\.\., N, N\)"),
        ((np.eye(2), np.ones(2), 0.1), r"B must have shape \(\.\.\., 2, M\); got \(2,\)"),
        (
            (np.ones((3, 2, 2)), np.ones((2, 2, 1)), 0.1),
            r"A and B and dt must broadcast; got \(3,\) and \(2,\) and \(\)",
        ),
        ((np.eye(2), np.ones((2, 1)), 0.1, "gbt"), "alpha is for method 'gbt', which needs it"),
        ((20 * np.eye(2), np.ones((2, 1)), 0.1, "bilinear"), "1 - 0.5 dt A is singular: A has an eigenvalue at 2 / dt"),
        (([[20, 1], [1e-9, 20]], np.ones((2, 1)), 0.1, "bilinear"), None),
        (([[3, 1], [0, 1]], np.ones((2, 1)), 1 / 3, "backward_euler"), "singular: A has an eigenvalue at 1 / dt"),
        (([[-1e17, 0], [0, -1]], np.ones((2, 1)), 1.0, "bilinear"), None),
    ],
)
def test_says_what_is_wrong(arguments, message):
    if message is None:
        assert np.isfinite(discretize(*arguments)[0]).all()
    else:
        with pytest.raises(ValueError, match="^discretize: .*" + message):
            discretize(*arguments)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 9))
def test_singular_up_to_rounding_is_singular(seed, n):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0] + 0.2 * np.triu(rng.standard_normal((n, n)), 1)
    inverse = np.linalg.inv(basis)
    A = basis @ np.diag(np.append(-rng.uniform(0, 5, n - 1), 20.0)) @ inverse
    with pytest.raises(ValueError, match="singular: A has an eigenvalue at 2 / dt"):
        discretize(A, np.ones((n, 1)), 0.1, "bilinear")
    discretize(A, np.ones((n, 1)), 0.1 * (1 + 1e-9), "bilinear")
    A_bar = basis @ np.diag(np.append(rng.uniform(-0.9, 0.9, n - 1), -1.0)) @ inverse
    with pytest.raises(ValueError, match="undiscretize: A_bar has the eigenvalue -1"):
        undiscretize(A_bar, np.ones((n, 1)), 0.1, "bilinear")
    undiscretize((1 - 1e-9) * A_bar, np.ones((n, 1)), 0.1, "bilinear")


def test_says_what_is_wrong_with_options():
    A, B = np.eye(2), np.ones((2, 1))
    with pytest.raises(ValueError, match="alpha is for method 'gbt'"):
        discretize(A, B, 0.1, "zoh", alpha=0.5)
    with pytest.raises(ValueError, match=r"alpha must be between 0 and 1; got 1\.5"):
        discretize(A, B, 0.1, "gbt", alpha=1.5)
    with pytest.raises(ValueError, match="prewarp is for method 'bilinear'"):
        discretize(A, B, 0.1, "zoh", prewarp=1.0)
    with pytest.raises(ValueError, match="prewarp is for method 'bilinear' and a positive"):
        discretize(A, B, 0.1, "bilinear", prewarp=-1.0)
    with pytest.raises(ValueError, match="below the Nyquist frequency"):
        discretize(A, B, 1.0, "bilinear", prewarp=3.2)
    with pytest.raises(TypeError, match="dt must be real"):
        discretize(A, B, 0.1j)
    with pytest.raises(ValueError, match=r"discretize_diag: 1 - 0\.5 dt a is zero"):
        discretize_diag([1.0, 20.0], 0.1, "bilinear")
    with pytest.raises(ValueError, match="discretize_diag: a and dt must broadcast"):
        discretize_diag(np.ones(3), np.ones(2))


# Gradients


@every_method
@both_kinds
def test_vjp(method, dtype):
    A, B = system(17, 3, 2, dtype)
    dt = np.array([0.3, 0.6])
    check_vjp(lambda A, B, dt: discretize_vjp(A, B, dt, method, **options(method)), A, B, dt)
    A, B = system(18, 2, 1, dtype, lead=(2, 1))
    check_vjp(lambda A, B, dt: discretize_vjp(A, B, dt, method, **options(method)), A, B[0], 0.4)
    check_vjp(lambda A, B, dt: discretize_vjp(A, B, dt, method, **options(method)), np.zeros((2, 2)), B.real[0, 0], 0.4)


@every_method
@both_kinds
def test_diag_vjp(method, dtype):
    a = np.array([-0.4, 0.0, -1e-6, -2.5, 0.3], dtype)
    if a.dtype.kind == "c":
        a = a + 1j * np.array([1.5, 0, 1e-7, -3, 0.1])
    check_vjp(lambda a, dt: discretize_diag_vjp(a, dt, method, **options(method)), a, np.array([[0.3], [0.8]]))
    check_vjp(lambda a, dt: discretize_diag_vjp(a, dt, method, **options(method)), a[2], 0.5)


def test_prewarp_vjp():
    A, B = system(19, 3, 1, "complex128")
    check_vjp(lambda A, B, dt: discretize_vjp(A, B, dt, "bilinear", prewarp=2.0), A, B, np.array([0.3, 0.9]))
    check_vjp(lambda a, dt: discretize_diag_vjp(a, dt, "bilinear", prewarp=2.0), A[0], np.array([[0.3], [0.9]]))


@pytest.mark.parametrize("z", [1e-9, 1e-4, 0.3, 1.5, 40.0])
def test_gradient_does_not_cancel_in_single_precision(z):
    # d w / d a = dt^2 phi1'(dt a): the plain formula keeps no digit of it below |z| = 1e-4.
    _, pullback = discretize_diag_vjp(np.float32(-z), 1.0)
    da, _ = pullback(None, np.float32(1))
    z = -float(np.float32(z))
    want = oracles.phi_exact(1, z, order=1)
    assert da.dtype == np.float32
    assert abs(da - want) <= np.finfo(np.float32).eps * want


def test_pullback_takes_none_and_checks_shapes():
    A, B = system(21, 3, 2, "float32")
    (A_bar, B_bar), pullback = discretize_vjp(A, B, 0.1)
    dA, dB, ddt = pullback(None, np.ones_like(B_bar))
    assert (dA.dtype, dB.dtype, ddt.dtype, ddt.shape) == (np.float32, np.float32, np.float64, ())
    both = pullback(np.ones_like(A_bar), np.ones_like(B_bar))[0]
    np.testing.assert_allclose(both, dA + pullback(np.ones_like(A_bar), None)[0], rtol=1e-5)
    assert not any(np.any(g) for g in pullback(None, None))
    with pytest.raises(ValueError, match=r"discretize_vjp: dB_bar must have shape \(3, 2\); got \(3,\)"):
        pullback(None, np.ones(3))
    with pytest.raises(TypeError, match="the pullback takes 2 cotangents; got 1"):
        pullback(A_bar)
    with pytest.raises(TypeError, match="the pullback takes 3 cotangents; got 2"):
        discretize_diag_vjp(A, 0.1, "foh")[1](None, None)


# The way back


@every_method
@every_dtype
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None)
def test_undiscretize_inverts(method, dtype, seed):
    A, B = system(seed, 4, 2, dtype, lead=(3,))
    A /= np.linalg.norm(A, axis=(-2, -1), keepdims=True)  # frequencies below the Nyquist frequency of every dt
    dt = np.array([0.2, 0.5, 1.1], np.float32)
    A_bar, B_bar, *_ = discretize(A, B, dt, method, **options(method))
    got_A, got_B = undiscretize(A_bar, B_bar, dt, method, **options(method))
    assert got_A.dtype == got_B.dtype == dtype
    close(got_A, A, 100)
    close(got_B, B, 100)


def test_undiscretize_prewarp_and_singular():
    A, B = system(23, 3, 1)
    A_bar, B_bar = discretize(A, B, 0.4, "bilinear", prewarp=2.0)
    close(undiscretize(A_bar, B_bar, 0.4, "bilinear", prewarp=2.0)[0], A, 10)
    A, B = undiscretize(*discretize([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], 0.3), 0.3)
    np.testing.assert_allclose(A, [[0, 1], [0, 0]], atol=1e-15)
    np.testing.assert_allclose(B, [[0], [1]], atol=1e-15)


@pytest.mark.parametrize("method", EXPONENTIAL)
@pytest.mark.parametrize(
    "A_bar", [[[-0.3, 1.0], [0.0, 0.5]], [[0.0, 1.0], [0.0, 0.5]], [[0.5, 0.0], [0.0, -1.0]], [[-1.0, 0], [0, -1.0]]]
)
@both_kinds
def test_undiscretize_without_a_logarithm(method, A_bar, dtype):
    with pytest.raises(ValueError, match="undiscretize: A_bar has no principal logarithm"):
        undiscretize(np.array(A_bar, dtype), np.ones((2, 1)), 0.1, method)


def test_undiscretize_without_a_rational_inverse():
    with pytest.raises(ValueError, match="undiscretize: A_bar has the eigenvalue -1"):
        undiscretize([[-1.0, 1.0], [0.0, 0.5]], np.ones((2, 1)), 0.1, "bilinear")
    with pytest.raises(ValueError, match=r"undiscretize: A_bar must have shape \(\.\.\., N, N\)"):
        undiscretize(np.ones(3), np.ones((3, 1)), 0.1)


# The matrix functions


@both_kinds
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 9), size=st.floats(-9, 2.5))
@settings(max_examples=15, deadline=None)
def test_expm_is_scipys(dtype, seed, n, size):
    A = random(np.random.default_rng(seed), (n, n), dtype)
    A *= 10.0**size / np.linalg.norm(A)
    want = linalg.expm(A)
    condition = max(1, linalg.expm_cond(A) if n > 1 else abs(A[0, 0]))
    assert np.linalg.norm(expm(A) - want) <= 1e-14 * condition * np.linalg.norm(want)


def test_expm_is_not_fooled_by_the_norm():
    # Far from normal: the norm asks for 18 squarings, which lose 5 digits; the norms of the powers ask for none.
    A = np.array([[0.1, 1e6], [0.0, -0.2]])
    corner = 1e6 * (np.exp(0.1) - np.exp(-0.2)) / 0.3
    np.testing.assert_allclose(expm(A), [[np.exp(0.1), corner], [0, np.exp(-0.2)]], rtol=1e-13)


def test_units_of_the_input_do_not_matter():
    A, B = system(29, 4, 1)
    want = discretize(A, B, 0.3, "foh")
    for unit in (2.0**-60, 2.0**60):
        got = discretize(A, B * unit, 0.3, "foh")
        for x, y, scale in zip(want, got, (1, unit, unit), strict=True):
            np.testing.assert_array_equal(x * scale, y)


@both_kinds
def test_units_of_the_states_do_not_matter(dtype):
    rng = np.random.default_rng(27)
    for n in (2, 5, 12):
        A = random(rng, (n, n), dtype)
        unit = 2.0 ** rng.integers(-40, 41, n)
        got = expm(A * unit[:, None] / unit) / unit[:, None] * unit
        tolerances.assert_close(got, expm(A), 0.1 * tolerances.matrix(dtype))


@both_kinds
def test_expm_adjoint_is_the_adjoint_of_the_frechet_derivative(dtype):
    rng = np.random.default_rng(31)
    A, direction, grad = (random(rng, (4, 4), dtype) for _ in range(3))
    derivative = linalg.expm_frechet(A, direction, compute_expm=False)
    left, right = np.vdot(grad, derivative).real, np.vdot(expm_adjoint(A, grad), direction).real
    np.testing.assert_allclose(left, right, rtol=1e-12)


@both_kinds
def test_logm_is_scipys(dtype):
    rng = np.random.default_rng(37)
    for n in (1, 2, 5, 12):
        for size in (0.1, 1.0, 2.0):
            A = expm(random(rng, (n, n), dtype) * size / np.sqrt(n))
            want = linalg.logm(A)
            np.testing.assert_allclose(logm(A), want, atol=2e-13 * np.linalg.norm(want))


@both_kinds
def test_what_the_gpu_runs_is_the_same(dtype, monkeypatch):
    # There no value is looked at: every loop runs to its bound, and no check fires.
    A, B = system(41, 4, 2, dtype, lead=(3,))
    A[1] *= 30
    want = discretize(A, B, 0.2, "foh")
    back = undiscretize(*discretize(A / 30, B, 0.2), 0.2)
    monkeypatch.setattr("linscan.ops.expm.host_any", lambda condition, otherwise=False: otherwise)
    monkeypatch.setattr("linscan._arrays.host_any", lambda condition, test=None, otherwise=False: otherwise)
    for x, y in zip(want, discretize(A, B, 0.2, "foh"), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(back, undiscretize(*discretize(A / 30, B, 0.2), 0.2), strict=True):
        np.testing.assert_array_equal(x, y)
    assert np.isfinite(discretize(A, B, -0.2, "bilinear")[0]).all()
