"""Laws of `dlsim` and `lsim` and their gradients, on every engine that runs on the CPU."""

import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import dtype_of, random
from tests.tolerances import assert_close, matrix, stable

ENGINES = ["reference", "cpu"]
FULL = ["float32", "float64", "complex64", "complex128"]


def matrices(rng, n, m, p, dtype, lead=()):
    """A stable random system: the 2-norm of A is 0.8."""
    a = random(rng, (*lead, n, n), dtype)
    a = (0.8 * a / np.linalg.norm(a, 2, axis=(-2, -1), keepdims=True)).astype(dtype_of(dtype))
    return a, *(random(rng, (*lead, *shape), dtype) for shape in ((n, m), (p, n), (p, m)))


def tolerance(dtype, n, m):
    return (n + m) * stable(dtype)  # each step sums n + m products


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize(("n", "m", "p"), [(1, 1, 1), (4, 1, 2), (8, 2, 1), (11, 3, 2)])
def test_dlsim_equals_the_loop(rng, engine, dtype, n, m, p):
    system = matrices(rng, n, m, p, dtype)
    for length in (0, 1, 2, 300):
        u, x0 = random(rng, (2, length, m), dtype), random(rng, (2, n), dtype)
        with linscan.use_engine(engine):
            t, y, x = linscan.dlsim((*system, 0.5), u, x0=x0)
        assert y.dtype == x.dtype == dtype_of(dtype)
        np.testing.assert_allclose(t, 0.5 * np.arange(length))
        for row in range(2):
            want_y, want_x = oracles.dlsim(*system, u[row], x0[row])
            assert_close(y[row], want_y, tolerance(dtype, n, m))
            assert_close(x[row], want_x, tolerance(dtype, n, m))


def test_dlsim_takes_the_forms_of_scipy(rng):
    num, den = scipy.signal.butter(3, 0.3)
    z, p, k = scipy.signal.butter(3, 0.3, output="zpk")
    system, u, x0 = matrices(rng, 3, 1, 1, "float64"), random(rng, (40,), "float64"), random(rng, (3,), "float64")
    for form in ((num, den, 0.1), (z, p, k, 0.1), (*system, 0.1), scipy.signal.dlti(num, den, dt=0.1)):
        ours, theirs = linscan.dlsim(form, u, x0=x0), scipy.signal.dlsim(form, u, x0=x0)
        assert len(ours) == len(theirs)
        for got, want in zip(ours, theirs, strict=True):
            assert_close(got, want, 100 * tolerance("float64", 3, 1))
    single = np.float32(num), np.float32(den), 0.1
    assert linscan.dlsim(single, np.float32(u))[1].dtype == np.float32


def test_dlsim_interpolates_its_input_as_scipy(rng):
    system, times = matrices(rng, 3, 2, 1, "float64"), np.array([0.0, 0.13, 0.5, 0.9, 1.6])
    u = random(rng, (5, 2), "float64")
    for got, want in zip(
        linscan.dlsim((*system, 0.1), u, times), scipy.signal.dlsim((*system, 0.1), u, times), strict=True
    ):
        assert_close(got, want, 10 * tolerance("float64", 3, 2))


@given(cut=st.integers(0, 299), n=st.sampled_from([4, 11]), dtype=st.sampled_from(["float32", "complex128"]))
def test_a_run_continued_at_its_last_sample_has_the_bits_of_one_run(cut, n, dtype):
    rng = np.random.default_rng(0)
    system, u = (*matrices(rng, n, 2, 2, dtype), 1.0), random(rng, (3, 300, 2), dtype)
    _, y, x = linscan.dlsim(system, u)
    _, first_y, first_x = linscan.dlsim(system, u[:, : cut + 1])
    _, rest_y, rest_x = linscan.dlsim(system, u[:, cut:], x0=first_x[:, -1])
    np.testing.assert_array_equal(np.concatenate([first_y, rest_y[:, 1:]], axis=1), y)
    np.testing.assert_array_equal(np.concatenate([first_x, rest_x[:, 1:]], axis=1), x)
    np.testing.assert_array_equal(linscan.dlsim(system, u[1], workers=2)[1], y[1])


@pytest.mark.parametrize("dtype", FULL)
def test_stepping_equals_simulating(rng, dtype):
    system, u, x = (*matrices(rng, 4, 2, 3, dtype), 1.0), random(rng, (2, 20, 2), dtype), random(rng, (2, 4), dtype)
    _, ys, xs = linscan.dlsim(system, u, x0=x)
    for t in range(20):
        assert_close(x, xs[:, t], tolerance(dtype, 4, 2))
        y, x = linscan.dlsim_step(system, u[:, t], x)
        assert y.dtype == x.dtype == dtype_of(dtype)
        assert_close(y, ys[:, t], tolerance(dtype, 4, 2))


def test_a_system_per_row_and_promotion(rng):
    a, b, c, d = matrices(rng, 3, 2, 1, "float64", lead=(4, 1))
    u = random(rng, (5, 30, 2), "float64")
    _, y, x = linscan.dlsim((a, b, c, None, 1.0), u)
    assert y.shape == (4, 5, 30, 1)
    assert x.shape == (4, 5, 30, 3)
    want, _ = oracles.dlsim(a[2, 0], b[2, 0], c[2, 0], 0 * d[2, 0], u[3], np.zeros(3))
    assert_close(y[2, 3], want, tolerance("float64", 3, 2))
    integers = [[1, 1], [0, 1]], [[0], [1]], [[1, 0]], [[0]], 1
    assert linscan.dlsim(integers, [1, 1, 1])[1][:, 0].tolist() == [0, 0, 1]
    assert linscan.dlsim(([[1j]], [[1]], [[1]], None, 1), [1, 0, 0])[1][:, 0].tolist() == [0, 1, 1j]


def test_nan_stays_in_its_row_and_later(rng):
    system, u = (*matrices(rng, 3, 1, 1, "float64"), 1.0), random(rng, (3, 20, 1), "float64")
    clean = linscan.dlsim(system, u)[1]
    u[1, 9] = np.nan
    y = linscan.dlsim(system, u)[1]
    assert np.isnan(y[1, 9:]).all()
    y[1, 9:] = clean[1, 9:]
    np.testing.assert_array_equal(y, clean)


@pytest.mark.parametrize("interp", [True, False])
@pytest.mark.parametrize("start", [0.0, 0.7])
@pytest.mark.parametrize(("n", "m", "p"), [(1, 1, 1), (3, 2, 2)])
def test_lsim_agrees_with_scipy(rng, interp, start, n, m, p):
    system, x0 = matrices(rng, n, m, p, "float64"), random(rng, (n,), "float64")
    times = start + 0.2 * np.arange(50)
    u = random(rng, (50, m) if m > 1 else (50,), "float64")
    ours = linscan.lsim(system, u, times, x0, interp)
    for got, want in zip(ours, scipy.signal.lsim(system, u, times, x0, interp), strict=True):
        assert_close(got, want, matrix("float64"))
    silent, theirs = linscan.lsim(system, None, times, x0), scipy.signal.lsim(system, None, times, x0)
    assert_close(silent[1], theirs[1], matrix("float64"))
    alone, theirs = linscan.lsim(system, u[:1], times[:1], x0), scipy.signal.lsim(system, u[:1], times[:1], x0)
    assert_close(alone[1], theirs[1], matrix("float64"))


@pytest.mark.parametrize("engine", ENGINES)
def test_lsim_is_exact_for_a_ramp_and_keeps_dtypes(engine):
    times = np.linspace(0, 2, 9)
    with linscan.use_engine(engine):
        _, y, x = linscan.lsim(([[0, 1], [0, 0]], [[0], [1]], [[1, 0]], None), times, times)
        assert_close(y, times**3 / 6, matrix("float64"))
        assert x.shape == (9, 2)
        for dtype in FULL:
            system = tuple(np.array(v, dtype) for v in ([[-1]], [[1]], [[1]], [[0]]))
            _, y, _ = linscan.lsim(system, np.ones((3, 9, 1), dtype), times)
            assert y.dtype == dtype_of(dtype)
            assert y.shape == (3, 9, 1)
            assert_close(y[1, :, 0], 1 - np.exp(-times), stable(dtype))
        _, y, _ = linscan.lsim(([1.0], [1.0, 1.0]), np.ones(9), times)
        assert_close(y, 1 - np.exp(-times), matrix("float64"))


ONE = np.ones((1, 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linscan.dlsim((ONE, 1), ONE), ValueError, r"dlsim: system must be one of \(num, den, dt\), .*2 items"),
        (
            lambda: linscan.dlsim((ONE, np.ones((2, 1)), ONE, ONE, 1), ONE),
            ValueError,
            r"dlsim: B must have shape \(\.\.\., 1, 1\) .*\(2, 1\)",
        ),
        (
            lambda: linscan.dlsim((ONE,) * 4 + (1,), np.ones((5, 2))),
            ValueError,
            r"dlsim: the system has 1 input.*\(5, 2\)",
        ),
        (
            lambda: linscan.dlsim((ONE,) * 4 + (1,), np.ones(5), x0=np.ones(2)),
            ValueError,
            r"dlsim: the system has 1 state",
        ),
        (lambda: linscan.dlsim((ONE,) * 4 + (1,), np.ones(5), [0, 1]), ValueError, "dlsim: t must have one entry"),
        (
            lambda: linscan.dlsim(scipy.signal.lti([1.0], [1.0, 1.0]), [1.0]),
            TypeError,
            "dlsim: system must be discrete",
        ),
        (lambda: linscan.lsim((ONE,) * 4, [1, 1, 1], [0, 1, 3]), ValueError, "lsim: T must be equally spaced"),
        (lambda: linscan.lsim((ONE,) * 4, [1, 1], [-1, 1]), ValueError, "lsim: T must not start before 0"),
        (lambda: linscan.lsim((ONE,) * 4, [1, 1], [0, 1, 2]), ValueError, "lsim: U must have one sample per time, 3"),
        (lambda: linscan.dlsim_vjp(([1.0], [1.0], 1), [1.0]), ValueError, "dlsim_vjp: system must be"),
    ],
)
def test_errors_say_what_was_needed(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.fixture
def on_reference():
    """Gradients are the same array expressions on every engine, and here need no compilation."""
    with linscan.use_engine("reference"):
        yield


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("times", [None, [0.0, 0.35, 0.5, 1.3]])
def test_dlsim_gradients(rng, dtype, times):
    def vjp(a, b, c, d, u, x0):
        outputs, pullback = linscan.dlsim_vjp((a, b, c, d, 0.1), u, times, x0)

        def back(dy, dx):
            dsystem, du, dx0 = pullback(dy, dx)
            return *dsystem[:4], du, dx0

        return outputs, back

    for length in (1, 4) if times is None else (4,):
        u = random(rng, (2, length, 2), dtype)
        linscan.check_vjp(vjp, *matrices(rng, 3, 2, 2, dtype), u, random(rng, (3,), dtype))
        lead = matrices(rng, 3, 2, 2, dtype, lead=(2,))
        linscan.check_vjp(vjp, *lead, u[0], random(rng, (2, 3), dtype))
    linscan.check_vjp(vjp, *matrices(rng, 3, 1, 2, dtype)[:3], None, random(rng, (4,), dtype), None)


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("interp", [True, False])
@pytest.mark.parametrize("start", [0.0, 0.7])
def test_lsim_gradients(rng, dtype, interp, start):
    def vjp(a, b, c, d, u, x0, times):
        outputs, pullback = linscan.lsim_vjp((a, b, c, d), u, times, x0, interp)

        def back(dy, dx):
            dsystem, du, dx0 = pullback(dy, dx)
            return *dsystem, du, dx0

        return outputs, back

    for length in (1, 6):
        times = start + 0.3 * np.arange(length)
        u, x0 = random(rng, (length, 2), dtype), random(rng, (3,), dtype)
        linscan.check_vjp(vjp, *matrices(rng, 3, 2, 2, dtype), u, x0, times=times)
    batch = random(rng, (2, 6, 2), dtype)
    linscan.check_vjp(vjp, *matrices(rng, 3, 2, 2, dtype), batch, random(rng, (2, 3), dtype), times=times)
    linscan.check_vjp(vjp, *matrices(rng, 3, 1, 1, dtype)[:3], None, u[:, 0], None, times=times)
