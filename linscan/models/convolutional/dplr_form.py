"""S4's model in real numbers: half of the conjugate pairs, diagonal plus low rank, as matrices of all N states.

The state is ``(Re x, Im x)``; with p the parts of P laid out alike,

    A = [[Re Λ, -Im Λ], [Im Λ, Re Λ]] - 2 p pᵀ,    B = (Re B, Im B),    C = 2 (Re C, -Im C).
"""

from linscan._arrays import Array, namespace


def parts(z: Array) -> Array:
    """Real parts, then imaginary parts, along the last axis."""
    return namespace(z).concatenate([z.real, z.imag], -1)


def real_form(Lambda: Array, P: Array, B: Array, C: Array) -> tuple[Array, Array, Array]:
    """``A`` (D, N, N), ``B`` (D, N, 1) and ``C`` (D, 1, N) from modes (D, N/2) and P (D, R, N/2)."""
    p, n = parts(P), Lambda.shape[-1]
    A, at = -2 * p.swapaxes(-1, -2) @ p, namespace(p).arange(n)
    for i, j, part in ((0, 0, Lambda.real), (n, n, Lambda.real), (n, 0, Lambda.imag), (0, n, -Lambda.imag)):
        A[:, i + at, j + at] += part
    return A, parts(B)[..., None], 2 * parts(C.conj())[:, None]


def back_to_modes(P: Array, dA: Array, dB: Array, dC: Array) -> tuple[Array, Array, Array, Array]:
    """The gradients of Λ, P, B and C from those of the real form."""
    n, at = P.shape[-1], namespace(P).arange(P.shape[-1])
    dLambda = dA[:, at, at] + dA[:, n + at, n + at] + 1j * (dA[:, n + at, at] - dA[:, at, n + at])
    dp = -2 * parts(P) @ (dA + dA.swapaxes(-1, -2))
    dC = 2 * (dC[..., :n] - 1j * dC[..., n:])
    return dLambda, dp[..., :n] + 1j * dp[..., n:], (dB[:, :n] + 1j * dB[:, n:])[..., 0], dC[:, 0]
