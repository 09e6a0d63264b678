"""HiPPO: the state is what the definition of its measure says, and gives the signal back."""

import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss
from scipy.special import binom, gamma

from linscan import diagonal_init, discretize, hippo, nplr
from linscan.ops.expm import expm  # SciPy 1.17 is wrong on triangular matrices with close diagonal entries
from linscan.ops.hippo import MEASURES, hippo_basis
from tests import oracles

SPLIT = ("legs", "legt", "lagt", "legsd", "fout", "fourier2", "foud", "fourier_decay")
WINDOW = {"legt": 2.0, "lmu": 1.0, "fout": 2.0, "fourier2": 1.0, "chebt": 1.0}
NODES, WEIGHTS = leggauss(60)


def fourier(n, x):
    """1, 0, √2 cos x, √2 sin x, √2 cos 2x, …."""
    m = np.arange(n) // 2
    wave = np.where(np.arange(n) % 2, np.sin(m * x[..., None]), np.cos(m * x[..., None]))
    return wave * np.where(np.arange(n) == 0, 1, np.sqrt(2))


def weights(measure, n, age):
    """The functions whose inner products with the past are the state, at `age` inside the window."""
    root = np.sqrt(2 * np.arange(n) + 1)
    if measure == "legt":
        return oracles.legendre(n, 1 - age) * root / 2
    if measure == "lmu":
        return oracles.legendre(n, 2 * age - 1) * (2 * np.arange(n) + 1)
    if measure == "chebt":
        return np.cos(np.arange(n) * np.arccos(1 - 2 * age)[..., None]) * np.where(np.arange(n), 4, 2**1.5) / np.pi
    return fourier(n, 2 * np.pi / WINDOW[measure] * age) / WINDOW[measure]


def project(measure, n, f):
    """The state by its definition: the integral of f(t - age) over the window, by quadrature."""
    window = WINDOW[measure]
    age = (NODES + 1) / 2 * window
    return (WEIGHTS * window / 2 * f(age)) @ weights(measure, n, age)


# What the state is


@pytest.mark.parametrize("measure", ["legt", "lmu"])
@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_legendre_windows_follow_every_polynomial(measure, n):
    # For a polynomial of degree below n nothing is lost: d/dt of the projection is A (projection) + B f(t) exactly.
    rng = np.random.default_rng(n)
    A, B = hippo(measure, n)
    f = np.polynomial.Polynomial(rng.standard_normal(n))
    state = project(measure, n, lambda age: f(0.8 - age))
    slope = project(measure, n, lambda age: f.deriv()(0.8 - age))
    np.testing.assert_allclose(A @ state + B[:, 0] * f(0.8), slope, atol=1e-9 * max(1, abs(slope).max()))


@pytest.mark.parametrize("measure", ["fout", "fourier2"])
def test_fourier_windows_follow_waves_and_ramps(measure):
    # A truncated series is right at the seam of the window for periodic inputs, and half way up the jump of a ramp.
    n, window = 8, WINDOW[measure]
    rng = np.random.default_rng(1)
    A, B = hippo(measure, n)
    amplitude = rng.standard_normal(n) * (np.arange(n) != 1)
    k = 2 * np.pi / window

    def f(age, slope=False):
        m = np.arange(n) // 2
        turn = np.where(np.arange(n) % 2, 1, -1) * m * k if slope else 1  # of e^(-i m k age), by t = -age
        wave = fourier(n, k * age)
        if slope:
            wave = -np.stack([wave[..., i ^ 1] for i in range(n)], axis=-1) * turn
        return wave @ amplitude + (1 if slope else window / 2 - age) * 0.7

    state, slope = project(measure, n, f), project(measure, n, lambda age: f(age, slope=True))
    np.testing.assert_allclose(A @ state + B[:, 0] * f(np.array(0.0)), slope, atol=1e-10)


def test_chebyshev_window_follows_what_began_inside_it():
    n = 9
    A, B = hippo("chebt", n)
    f = np.polynomial.Polynomial(np.random.default_rng(2).standard_normal(6))
    state = project("chebt", n, lambda age: f(-age))
    slope = project("chebt", n, lambda age: f.deriv()(-age))
    lost = weights("chebt", n, np.array(1.0)) * f(-1.0)  # what leaves the window, which the system does not see
    np.testing.assert_allclose(A @ state + B[:, 0] * f(0) - lost, slope, atol=1e-9)


@pytest.mark.parametrize("age", [0.0, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("n", [2, 6, 20])
def test_impulse_responses_are_the_weighting_functions(n, age):
    # Where a measure is closed under d/dt, e^(tA) B is its weighting function for every n.
    def response(measure, **parameters):
        A, B = hippo(measure, n, **parameters)
        return (expm(A * age) @ B)[:, 0]

    k = np.arange(n)
    past, close = np.exp(-age), {"rtol": 1e-11, "atol": 1e-11}
    legendre = oracles.legendre(n, np.array(2 * past - 1))
    np.testing.assert_allclose(response("legs"), past * np.sqrt(2 * k + 1) * legendre, **close)
    laguerre = oracles.laguerre(n, np.array(age))
    np.testing.assert_allclose(response("lagt", beta=0.7), 0.7 * np.exp(-age / 2) * laguerre, **close)
    np.testing.assert_allclose(response("glagt"), np.exp(-age) * laguerre, **close)
    np.testing.assert_allclose(
        response("foud"), np.exp(-age / 2) * fourier(n, np.array(2 * np.pi * age)), **close
    )  # fmt: skip
    alpha, beta = 0.4, 0.3
    size = np.sqrt(gamma(alpha + 1) * binom(k + alpha, k))
    want = beta ** ((1 - alpha) / 2) / np.sqrt(gamma(1 - alpha)) * np.exp(-(1 + beta) / 2 * age) / size
    want = want * oracles.laguerre(n, np.array(age), alpha)
    np.testing.assert_allclose(response("glagt", alpha=alpha, beta=beta), want, **close)


def test_fourier_decay_divides_by_three_each_period():
    A, B = hippo("fourier_decay", 512)
    first, second = (expm(A * t) @ B for t in (0.7, 2.7))
    np.testing.assert_allclose(3 * first[:6, 0], fourier(6, np.array(0.7 * np.pi)), atol=5e-3)
    np.testing.assert_allclose(3 * second[:6], first[:6], atol=5e-3)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_legsd_is_the_normal_part_of_legs(n):
    (A, B), (D, E) = hippo("legs", n), hippo("legsd", n)
    np.testing.assert_allclose(D - A, B @ B.T / 2, rtol=1e-14)
    np.testing.assert_allclose(D @ D.T, D.T @ D, atol=1e-13 * np.linalg.norm(D) ** 2)
    np.testing.assert_array_equal(E, B / 2)


# Back to the signal


@pytest.mark.parametrize("measure", WINDOW)
def test_basis_inverts_the_projection(measure):
    n = 12
    age = np.linspace(0.05, 0.95, 7) * WINDOW[measure]
    if measure in ("fout", "fourier2"):
        f = lambda x: 0.3 + np.cos(2 * np.pi * x / WINDOW[measure]) - 2 * np.sin(6 * np.pi * x / WINDOW[measure])  # noqa: E731
    elif measure == "chebt":  # the reconstruction carries the weight of the measure
        f = lambda x: (1 - x + 3 * x**3) / np.sqrt(1 - (1 - 2 * x) ** 2)  # noqa: E731
    else:
        f = np.polynomial.Polynomial(np.random.default_rng(3).standard_normal(n))
    if measure == "chebt":  # quadrature at the Chebyshev nodes, which is exact under that weight
        x = (1 - np.cos(np.pi * (np.arange(64) + 0.5) / 64)) / 2
        state = (np.pi / 128 * np.sqrt(1 - (1 - 2 * x) ** 2) * f(x)) @ weights(measure, n, x)
    else:
        state = project(measure, n, f)
    basis = hippo_basis(measure, n, age)
    assert basis.shape == (7, n)
    np.testing.assert_allclose(basis @ state, f(age), atol=1e-9)


@pytest.mark.parametrize(("measure", "alpha", "beta"), [("lagt", 0, 0.7), ("glagt", 0, 1), ("glagt", 0.4, 0.3)])
def test_laguerre_basis_inverts_the_projection(measure, alpha, beta):
    # The weighting function is the impulse response; with the basis it makes the identity on the basis' own span.
    n = 5
    A, B = hippo(measure, n, alpha=alpha, beta=beta)
    age = (NODES + 1) * 40
    age, step = age**3 / 80**2, WEIGHTS * 40 * 3 * age**2 / 80**2  # denser towards 0, where age**alpha has its kink
    kernel = (expm(age[:, None, None] * A) @ B)[..., 0]
    gram = (kernel * step[:, None]).T @ hippo_basis(measure, n, age, alpha=alpha, beta=beta)
    np.testing.assert_allclose(gram, np.eye(n), atol=2e-3)


def smooth(t):
    return np.sin(5 * t) + 0.5 * np.cos(11 * t + 1) + t


def test_legs_memory_reconstructs_the_whole_past():
    n, steps = 32, 4000
    u = smooth(np.arange(1, steps + 1) / steps) - smooth(0)
    A, B = hippo("legs", n)
    x = np.zeros(n)
    for lo in range(0, steps, 500):
        A_bar, B_bar = discretize(A, B, 1 / np.arange(lo + 1, lo + 501), "bilinear")
        for i in range(500):
            x = A_bar[i] @ x + B_bar[i, :, 0] * u[lo + i]
    age = np.linspace(0.02, 0.98, 30)
    recalled = hippo_basis("legs", n, age) @ x + smooth(0)
    np.testing.assert_allclose(recalled, smooth(1 - age), atol=4e-3)
    # and the state does not depend on the time scale: half the samples of the same signal give the same state
    y = np.zeros(n)
    A_bar, B_bar = discretize(A, B, 1 / np.arange(1, steps // 2 + 1), "bilinear")
    for i in range(steps // 2):
        y = A_bar[i] @ y + B_bar[i, :, 0] * u[2 * i + 1]
    np.testing.assert_allclose(y, x, atol=5e-3)


def test_legs_memory_is_exact_for_held_inputs():
    n, steps = 9, 7
    u = np.random.default_rng(5).standard_normal(steps)
    t = np.arange(1, steps)
    A_bar, B_bar = discretize(*hippo("legs", n), np.log((t + 1) / t), "zoh")
    x = u[0] * np.eye(n)[0]  # the past so far is a constant
    for i in range(steps - 1):
        x = A_bar[i] @ x + B_bar[i, :, 0] * u[i + 1]
    place = (np.arange(steps)[:, None] + (NODES + 1) / 2) / steps
    functions = oracles.legendre(n, 2 * place - 1) * np.sqrt(2 * np.arange(n) + 1)
    np.testing.assert_allclose(x, np.einsum("s,p,spn->n", u, WEIGHTS / 2 / steps, functions), atol=1e-13)


@pytest.mark.parametrize(("measure", "atol"), [("legt", 1e-3), ("lmu", 1e-3), ("fout", 0.1), ("fourier2", 0.1)])
def test_windows_reconstruct_the_recent_past(measure, atol):
    n, window, steps = 32, WINDOW[measure], 4000
    dt = window / steps
    A_bar, B_bar, B_prev = discretize(*hippo(measure, n), dt, "foh")
    t = np.arange(3 * steps + 1) * dt
    u = smooth(t / window)
    x = np.zeros(n)
    for i in range(1, len(t)):
        x = A_bar @ x + B_bar[:, 0] * u[i] + B_prev[:, 0] * u[i - 1]
    age = np.linspace(0.1, 0.9, 30) * window
    np.testing.assert_allclose(hippo_basis(measure, n, age) @ x, smooth(t[-1] / window - age / window), atol=atol)


# Normal plus low rank


@pytest.mark.parametrize("n", [2, 4, 10, 64, 256])
@pytest.mark.parametrize("measure", SPLIT)
def test_nplr_rebuilds(measure, n):
    A, B = hippo(measure, n)
    Lambda, P, b, V = nplr(measure, n)
    assert (Lambda.shape, P.shape, b.shape, V.shape) == (
        (n // 2,), (2 if measure == "legt" else 1, n // 2), (n // 2,), (n, n // 2),
    )  # fmt: skip
    size = np.linalg.norm(A)
    p = 2 * (V @ P.T).real
    normal = A + p @ p.T
    np.testing.assert_allclose(normal @ normal.T, normal.T @ normal, atol=1e-13 * size**2)
    np.testing.assert_allclose(2 * (V * Lambda @ V.conj().T).real - p @ p.T, A, atol=1e-13 * size)
    np.testing.assert_allclose(2 * (V @ b).real, B[:, 0], atol=1e-13 * n * abs(B).max())
    np.testing.assert_allclose(V.conj().T @ V, np.eye(n // 2), atol=1e-13)
    np.testing.assert_allclose(V.T @ V, 0, atol=1e-14 * n)  # the conjugates are the other half
    assert (Lambda.imag >= 0).all()
    assert (np.diff(Lambda.imag) > 0).all()
    np.testing.assert_array_equal(Lambda.real, -0.5 if measure in ("legs", "legsd", "foud") else 0)
    np.testing.assert_array_equal(b.imag, 0)
    assert (b.real >= 0).all()


# Diagonal initialisations


def test_diagonal_inits():
    n = np.arange(4)
    for kind, frequency in {
        "lin": np.pi * n,
        "inv": 8 / np.pi * (8 / (2 * n + 1) - 1),
        "inv2": 8 / np.pi * (8 / (n + 1) - 1),
        "quad": (1 + 2 * n) ** 2 / np.pi,
    }.items():
        Lambda, B = diagonal_init(kind, 8)
        np.testing.assert_allclose(Lambda, -0.5 + 1j * frequency, rtol=1e-15)
        np.testing.assert_array_equal(B, np.ones(4, complex))
    Lambda, B = diagonal_init("real", 3)
    np.testing.assert_array_equal(Lambda, [-1.0, -2.0, -3.0])
    np.testing.assert_array_equal(B, np.ones(3))
    assert Lambda.dtype == B.dtype == np.float64


def test_diagonal_init_legs_and_dss_are_the_normal_part_of_legs():
    skew = hippo("legs", 16)[0]
    skew = skew - skew.T
    largest = np.sort(np.linalg.eigvals(skew / 2).imag)[8:]
    for kind in ("legs", "dss"):
        Lambda, B = diagonal_init(kind, 16)
        np.testing.assert_array_equal(Lambda.real, -0.5)
        np.testing.assert_allclose(Lambda.imag, largest, rtol=1e-12)
        np.testing.assert_array_equal(B, nplr("legs", 16)[2] if kind == "legs" else 1)


def test_inverse_law_approximates_legs():
    # The reason for "inv": its frequencies are close to those of legs.
    inverse, legs = (np.sort(diagonal_init(kind, 64)[0].imag) for kind in ("inv", "legs"))
    assert abs(inverse[-1] / legs[-1] - 1) < 0.05


# Errors


@pytest.mark.parametrize("measure", ["lmu", "glagt", "chebt"])
def test_nplr_refuses_what_is_not_normal_plus_low_rank(measure):
    with pytest.raises(
        ValueError, match=f"nplr: no low-rank matrix is known that makes '{measure}' normal; use 'legs'"
    ):
        nplr(measure, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hippo("leg", 4), ValueError, "hippo: measure must be one of 'legs', 'legt'"),
        (lambda: hippo("legs", 0), ValueError, "hippo: N must be positive; got 0"),
        (lambda: hippo("legs", 4.0), TypeError, "hippo: N must be an integer; got 4.0"),
        (lambda: hippo("fout", 5), ValueError, "hippo: N must be even, for modes come in pairs; got 5"),
        (lambda: hippo("legs", 4, alpha=0.1), ValueError, "hippo: alpha is for 'glagt'"),
        (lambda: hippo("legs", 4, beta=0.1), ValueError, "beta for 'lagt' and 'glagt'"),
        (lambda: hippo("glagt", 4, alpha=1.0), ValueError, r"alpha must be in \(-1, 1\) and beta positive"),
        (lambda: hippo("lagt", 4, beta=0.0), ValueError, "beta positive"),
        (lambda: nplr("legs", 5), ValueError, "nplr: N must be even"),
        (lambda: diagonal_init("lin", 5), ValueError, "diagonal_init: N must be even"),
        (lambda: diagonal_init("linear", 4), ValueError, "diagonal_init: kind must be one of 'lin', 'inv'"),
        (lambda: hippo_basis("foud", 4, 0.1), ValueError, "hippo_basis: measure must be one of 'legs', 'legt', 'lmu'"),
    ],
)
def test_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("measure", MEASURES)
def test_shapes(measure):
    for n in (2, 6):
        A, B = hippo(measure, n)
        assert (A.shape, B.shape, A.dtype, B.dtype) == ((n, n), (n, 1), np.float64, np.float64)
        assert A.flags.c_contiguous
        assert A.flags.writeable
