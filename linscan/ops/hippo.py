r"""HiPPO matrices: linear systems whose state holds the coefficients of the input's past in a basis of functions.

Everything here is computed once, in float64 and on the host. `linscan.ops.nplr` has the eigen-decompositions.
"""

import operator

import numpy as np
from numpy.polynomial.legendre import legvander
from scipy.special import binom, eval_genlaguerre, gamma, gammaln

from linscan import _arrays

MEASURES = ("legs", "legt", "lmu", "lagt", "glagt", "fout", "fourier2", "foud", "fourier_decay", "legsd", "chebt")
# The Fourier family: angular frequency of the first pair, strength of the correction s in A = rotations - s b b^T.
FOURIER = {"fout": (np.pi, 1.0), "fourier2": (2 * np.pi, 2.0), "foud": (2 * np.pi, 0.0), "fourier_decay": (np.pi, 0.5)}
_BASES = ("legs", "legt", "lmu", "lagt", "glagt", "fout", "fourier2", "chebt")


def hippo(measure: str, N: int, *, alpha: float = 0.0, beta: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    r"""State matrix and input matrix of the HiPPO system ``x' = A x + B u`` for a measure.

    Parameters
    ----------
    measure : str
        ===================== ============== ===================================================================
        measure               window         the state holds
        ===================== ============== ===================================================================
        ``"legs"``            all the past   Legendre, orthonormal; as a memory it is time-varying, see Notes
        ``"legt"``            2              Legendre, orthonormal
        ``"lmu"``             1              Legendre in the scaling of Legendre memory units
        ``"lagt"``            fading         Laguerre functions times `beta`
        ``"glagt"``           fading         generalised Laguerre with `alpha`, tilted by `beta`
        ``"fout"``            2              Fourier: constant, nothing, then cosine and sine pairs
        ``"fourier2"``        1              the same on half the window
        ``"foud"``            fading         Fourier of period 1 under ``exp(-t/2)``; already normal
        ``"fourier_decay"``   fading         Fourier of period 2, every period a third of the one after it
        ``"legsd"``           fading         the normal part of legs
        ``"chebt"``           1              Chebyshev; right only for inputs that were zero before the window
        ===================== ============== ===================================================================

        For a window of length θ use ``A / θ * window`` and ``B / θ * window``, or divide `dt` by as much.
    N : int
        Number of coefficients; even for the Fourier measures.
    alpha : float, default 0
        For ``"glagt"``, in (-1, 1).
    beta : float, default 1
        For ``"lagt"`` and ``"glagt"``, positive.

    Returns
    -------
    A : array, (N, N)
        State matrix.
    B : array, (N, 1)
        Input matrix.

    Raises
    ------
    ValueError
        For an unknown measure, an `N` below 1 or (Fourier) odd, or an `alpha` or `beta` the measure has no place for.
    TypeError
        If `N` is not an integer.

    See Also
    --------
    nplr : A as a normal matrix minus a low-rank one.
    discretize : to a recurrence.
    linscan.ops.hippo.hippo_basis : from the state back to the signal.

    Notes
    -----
    The memory of legs over t samples divides by t: ``x' = (A x + B u) / t``. Its bilinear steps are
    ``discretize(A, B, 1 / t, "bilinear")`` with ``t = 1, 2, …``, an array of steps at once (or, as A is triangular, one
    `scan` over time for each coefficient in turn). ``discretize(A, B, log((t + 1) / t), "zoh")`` is the exact step from
    t to t + 1 for an input held over it. With constant steps the same matrices remember on an exponentially fading
    scale, as S4 uses them. The window of ``"legt"`` and ``"fout"`` is 2 because the first published code had it so;
    papers give them for θ = 1. ``"chebt"`` is nilpotent and forgets nothing.

    References
    ----------
    .. [1] A. Gu, T. Dao, S. Ermon, A. Rudra, C. Ré, "HiPPO: recurrent memory with optimal polynomial projections",
       2020, arXiv:2008.07669.
    .. [2] A. Gu, I. Johnson, A. Timalsina, A. Rudra, C. Ré, "How to train your HiPPO", 2022, arXiv:2206.12037.
    .. [3] A. Voelker, I. Kajić, C. Eliasmith, "Legendre memory units", NeurIPS 2019.

    Examples
    --------
    >>> from linscan import hippo
    >>> A, B = hippo("legs", 3)
    >>> A.round(3)
    array([[-1.   ,  0.   ,  0.   ],
           [-1.732, -2.   ,  0.   ],
           [-2.236, -3.873, -3.   ]])
    >>> B.round(3)
    array([[1.   ],
           [1.732],
           [2.236]])
    """
    N = check_size("hippo", measure, N)
    _check_parameters("hippo", measure, alpha, beta)
    if measure in FOURIER:
        A, b = _fourier(measure, N)
    elif measure in ("lagt", "glagt"):
        A, b = _laguerre(measure, N, alpha, beta)
    elif measure == "chebt":
        A, b = _chebyshev(N)
    else:
        A, b = _legendre(measure, N)
    return A, b[:, None]


def check_size(who: str, measure: str, N: int, even: bool = False) -> int:
    """`N` as an int that suits `measure`, which is checked as well."""
    _arrays.check_choice(who, "measure", measure, MEASURES)
    try:
        N = operator.index(N)
    except TypeError as error:
        raise TypeError(f"{who}: N must be an integer; got {N!r}") from error
    if N < 1:
        raise ValueError(f"{who}: N must be positive; got {N}")
    if (even or measure in FOURIER) and N % 2:
        raise ValueError(f"{who}: N must be even, for modes come in pairs; got {N}")
    return N


def _check_parameters(who: str, measure: str, alpha: float, beta: float) -> None:
    if (alpha != 0 and measure != "glagt") or (beta != 1 and measure not in ("lagt", "glagt")):
        raise ValueError(
            f"{who}: alpha is for 'glagt', beta for 'lagt' and 'glagt'; got {measure!r} with {alpha=} and {beta=}"
        )
    if not (-1 < alpha < 1 and beta > 0):
        raise ValueError(f"{who}: alpha must be in (-1, 1) and beta positive; got {alpha=} and {beta=}")


def _legendre(measure: str, N: int) -> tuple[np.ndarray, np.ndarray]:
    n = np.arange(N)
    root = np.sqrt(2 * n + 1)
    above = n[:, None] < n
    sign = (-1.0) ** (n[:, None] - n)
    if measure == "lmu":
        return (2 * n + 1)[:, None] * np.where(above, -1.0, -sign), (2 * n + 1) * (-1.0) ** n
    if measure == "legt":
        return -0.5 * np.outer(root, root) * np.where(above, sign, 1.0), root / 2
    A = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
    return (A + np.outer(root, root) / 2, root / 2) if measure == "legsd" else (A, root)


def _laguerre(measure: str, N: int, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    lower = np.tril(np.ones((N, N)))
    if measure == "lagt":
        return np.eye(N) / 2 - lower, np.full(N, float(beta))
    n = np.arange(N)
    size = _laguerre_size(n, alpha)
    A = (1 - beta) / 2 * np.eye(N) - lower
    return A * (size / size[:, None]), _tilt(alpha, beta) * binom(n + alpha, n) / size


def _laguerre_size(n: np.ndarray, alpha: float) -> np.ndarray:
    """Norms of the generalised Laguerre polynomials."""
    return np.exp((gammaln(n + alpha + 1) - gammaln(n + 1)) / 2)


def _tilt(alpha: float, beta: float) -> float:
    return float(beta ** ((1 - alpha) / 2) / np.sqrt(gamma(1 - alpha)))


def _fourier(measure: str, N: int) -> tuple[np.ndarray, np.ndarray]:
    first, strength = FOURIER[measure]
    frequency = np.zeros(N - 1)
    frequency[::2] = first * np.arange(N // 2)  # couples rows (2m, 2m + 1)
    b = np.zeros(N)
    b[::2] = np.sqrt(2)
    b[0] = 1
    A = np.diag(frequency, -1) - np.diag(frequency, 1) - strength * np.outer(b, b)
    if measure == "foud":
        return A - np.eye(N) / 2, b
    return A, strength * b


def _chebyshev(N: int) -> tuple[np.ndarray, np.ndarray]:
    # T_n' = 2n (T_{n-1} + T_{n-3} + …), T_0 counting half; the basis is 1, √2 T_1, √2 T_2, ….
    n = np.arange(N)
    A = -4.0 * n[:, None] * ((n[:, None] > n) & ((n[:, None] - n) % 2 == 1))
    A[:, 0] /= np.sqrt(2)
    return A, 2**1.5 / np.pi * np.where(n == 0, 1, np.sqrt(2))


def hippo_basis(measure: str, N: int, age: np.ndarray, *, alpha: float = 0.0, beta: float = 1.0) -> np.ndarray:
    r"""Functions that turn a HiPPO state back into the signal: ``f(t - age) ≈ hippo_basis(measure, N, age) @ x(t)``.

    Parameters
    ----------
    measure : {"legs", "legt", "lmu", "lagt", "glagt", "fout", "fourier2", "chebt"}
        A measure whose functions are complete on its window.
    N : int
        Number of coefficients.
    age : array_like
        How long ago, inside the window of the measure; for ``"legs"`` as a fraction of the time since the start.
    alpha, beta : float
        As in `hippo`.

    Returns
    -------
    basis : array, (..., N)
        One row of N values for each age.

    Raises
    ------
    ValueError, TypeError
        As in `hippo`.

    Examples
    --------
    What the memory of 16 coefficients says about a ramp, after 1000 samples:

    >>> import numpy as np
    >>> from linscan import discretize, hippo
    >>> from linscan.ops.hippo import hippo_basis
    >>> A, B = hippo("legs", 16)
    >>> A_bar, B_bar = discretize(A, B, 1 / np.arange(1, 1001), "bilinear")
    >>> x = np.zeros(16)
    >>> for t in range(1000):
    ...     x = A_bar[t] @ x + B_bar[t, :, 0] * (t / 1000)
    >>> (hippo_basis("legs", 16, [0.1, 0.5, 0.9]) @ x).round(2)
    array([0.9, 0.5, 0.1])
    """
    who = "hippo_basis"
    _arrays.check_choice(who, "measure", measure, _BASES)
    N = check_size(who, measure, N)
    _check_parameters(who, measure, alpha, beta)
    age = np.asarray(age, np.float64)
    n = np.arange(N)
    if measure in FOURIER:
        phase = FOURIER[measure][0] * age[..., None] * (n // 2)
        return np.where(n % 2, np.sin(phase), np.cos(phase)) * np.where(n == 0, 1, np.sqrt(2))
    if measure in ("lagt", "glagt"):
        size, tilt, decay = (
            (1, beta, 0.5) if measure == "lagt" else (_laguerre_size(n, alpha), _tilt(alpha, beta), (1 - beta) / 2)
        )
        weight = age**alpha * np.exp(-decay * age) / tilt
        return weight[..., None] * eval_genlaguerre(n, alpha, age[..., None]) / size
    if measure == "chebt":
        place = 1 - 2 * age[..., None]
        return np.cos(n * np.arccos(place)) * np.where(n == 0, 1, np.sqrt(2)) / np.sqrt(2 * (1 - place**2))
    if measure == "lmu":
        return legvander(2 * age - 1, N - 1)
    return legvander(1 - (2 if measure == "legs" else 1) * age, N - 1) * np.sqrt(2 * n + 1)
