"""HiPPO matrices as a normal matrix minus a low-rank one, and the diagonal initialisations that came out of them."""

import numpy as np

from linscan import _arrays
from linscan.ops.hippo import FOURIER, check_size, hippo

_KINDS = ("lin", "inv", "inv2", "quad", "legs", "real", "dss")
_REAL = {"legs": -0.5, "legt": 0.0, "lagt": 0.0, "legsd": -0.5} | dict.fromkeys(FOURIER, 0.0) | {"foud": -0.5}


def nplr(measure: str, N: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    r"""Diagonalise a HiPPO matrix up to low rank: ``A = V (Λ - P Pᴴ) Vᴴ`` with V unitary.

    Of each conjugate pair of modes only the one with positive frequency is returned, so sums over all modes are twice
    the real part of sums over these.

    Parameters
    ----------
    measure : {"legs", "legt", "lagt", "legsd", "fout", "fourier2", "foud", "fourier_decay"}
        See `hippo`. For "lmu", "glagt" and "chebt" no such form is known.
    N : int
        Number of states, even.

    Returns
    -------
    Lambda : array, (N/2,)
        Eigenvalues of the normal part, by increasing imaginary part (not negative).
    P : array, (R, N/2)
        The correction in the eigenvectors' coordinates, a row for each of its ranks: 2 for legt, otherwise 1 (zeros
        where A is normal already).
    B : array, (N/2,)
        The input matrix in the same coordinates. Eigenvectors are scaled to make it positive.
    V : array, (N, N/2)
        Eigenvectors: ``A = 2 Re(V diag(Lambda) Vᴴ) - p pᵀ`` with ``p = 2 Re(V Pᵀ)``; B of `hippo` is ``2 Re(V B)``.

    Raises
    ------
    ValueError
        For a measure without such a form, or an odd `N`.
    TypeError
        If `N` is not an integer.

    See Also
    --------
    hippo : the matrix itself.
    diagonal_init : diagonal systems without a correction.

    Notes
    -----
    ``A + p pᵀ`` is a multiple of the identity plus a skew-symmetric matrix, which is diagonalised as a Hermitian one;
    A itself must not be, its eigenvectors are exponentially ill-conditioned. Published code keeps the conjugates of
    these modes, leaves the eigenvectors' phases to LAPACK, and clips the imaginary part of B to ±2; nothing is clipped
    here.

    References
    ----------
    .. [1] A. Gu, K. Goel, C. Ré, "Efficiently modeling long sequences with structured state spaces", 2021,
       arXiv:2111.00396.

    Examples
    --------
    >>> from linscan import hippo, nplr
    >>> Lambda, P, B, V = nplr("legs", 8)
    >>> p = 2 * (V @ P.T).real
    >>> A = 2 * (V * Lambda @ V.conj().T).real - p @ p.T
    >>> (abs(A - hippo("legs", 8)[0]) < 1e-13).all()
    np.True_
    """
    who = "nplr"
    N = check_size(who, measure, N, even=True)
    if measure not in _REAL:
        raise ValueError(
            f"{who}: no low-rank matrix is known that makes {measure!r} normal; use {', '.join(map(repr, _REAL))}"
        )
    A, b = hippo(measure, N)
    p = _correction(measure, N, b[:, 0])
    frequency, V = _fourier_modes(measure, N) if measure in FOURIER else _modes(A + p @ p.T)
    B = V.conj().T @ b[:, 0]
    phase = np.where(B == 0, 1, B) / np.where(B == 0, 1, abs(B))
    V = V * phase
    return _REAL[measure] + 1j * frequency, (V.conj().T @ p).T, abs(B).astype(np.complex128), V


def _correction(measure: str, N: int, b: np.ndarray) -> np.ndarray:
    """The columns p that make ``A + p pᵀ`` normal; `b` is the input matrix."""
    n = np.arange(N)
    if measure == "legs":
        columns = [b / np.sqrt(2)]
    elif measure == "legt":
        columns = [np.where(n % 2 == parity, np.sqrt(n + 0.5), 0) for parity in (0, 1)]
    elif measure == "lagt":
        columns = [np.full(N, np.sqrt(0.5))]
    else:  # A = rotations - s b b^T, and B = s b
        strength = FOURIER.get(measure, (0, 0.0))[1]
        columns = [b / np.sqrt(strength) if strength else np.zeros(N)]
    return np.stack(columns, axis=-1)


def _modes(normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positive frequencies of (a multiple of the identity plus skew-symmetric), and their eigenvectors."""
    half = len(normal) // 2
    w, V = np.linalg.eigh(-0.5j * (normal - normal.T))
    return w[half:], V[:, half:]


def _fourier_modes(measure: str, N: int) -> tuple[np.ndarray, np.ndarray]:
    # Written down, not computed: frequency 0 is a double eigenvalue, and a solver's two vectors for it need not be
    # each other's conjugates.
    V = np.kron(np.eye(N // 2), np.array([[1], [-1j]])) / np.sqrt(2)
    return FOURIER[measure][0] * np.arange(N // 2), V


def diagonal_init(kind: str, N: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Initial eigenvalues and input weights of a diagonal state-space model with N real states.

    Parameters
    ----------
    kind : str
        With ``n = 0, 1, …`` and N/2 complex modes, ``Re Λ = -1/2`` and

        ========== =====================================================================================
        kind       Λ and B
        ========== =====================================================================================
        ``lin``    ``Im Λ = π n``
        ``inv``    ``Im Λ = (N/π) (N/(2n+1) - 1)``
        ``inv2``   ``Im Λ = (N/π) (N/(n+1) - 1)``
        ``quad``   ``Im Λ = (2n+1)² / π``
        ``legs``   the modes of ``nplr("legs", N)``, with its B
        ``dss``    the modes of ``nplr("legs", N)``
        ``real``   ``Λ = -(n + 1)``: N real modes
        ========== =====================================================================================

        B is 1 unless said.
    N : int
        Number of real states; even but for ``"real"``.

    Returns
    -------
    Lambda : array, (N/2,) complex, or (N,) real for ``"real"``
        Eigenvalues, with imaginary parts that are not negative: of a conjugate pair the other one is left out.
    B : array
        Input weights, of the same shape and dtype.

    Raises
    ------
    ValueError
        For an unknown kind or an odd `N`.
    TypeError
        If `N` is not an integer.

    See Also
    --------
    nplr : the modes of HiPPO matrices.
    discretize_diag : to a recurrence.

    Notes
    -----
    S4D models take twice the real part of the sum over these modes; DSS counts its N complex modes (`N` here is twice
    that) and takes the real part once. Theory would halve B of ``"legs"``, which published code does not.

    References
    ----------
    .. [1] A. Gu, A. Gupta, K. Goel, C. Ré, "On the parameterization and initialization of diagonal state space models",
       2022, arXiv:2206.11893.
    .. [2] A. Gupta, A. Gu, J. Berant, "Diagonal state spaces are as effective as structured state spaces", 2022,
       arXiv:2203.14343.

    Examples
    --------
    >>> from linscan import diagonal_init
    >>> Lambda, B = diagonal_init("lin", 6)
    >>> Lambda.round(3)
    array([-0.5+0.j   , -0.5+3.142j, -0.5+6.283j])
    """
    who = "diagonal_init"
    _arrays.check_choice(who, "kind", kind, _KINDS)
    N = check_size(who, "legs", N, even=kind != "real")
    if kind == "real":
        return -np.arange(1.0, N + 1), np.ones(N)
    if kind in ("legs", "dss"):
        Lambda, _, B, _ = nplr("legs", N)
        return Lambda, B if kind == "legs" else np.ones_like(B)
    n = np.arange(N // 2)
    frequency = {
        "lin": np.pi * n,
        "inv": N / np.pi * (N / (2 * n + 1) - 1),
        "inv2": N / np.pi * (N / (n + 1) - 1),
        "quad": (2 * n + 1) ** 2 / np.pi,
    }[kind]
    return -0.5 + 1j * frequency, np.ones(N // 2, np.complex128)
