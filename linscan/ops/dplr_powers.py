"""From the output vector C of a DPLR model to the one its truncated kernel needs: ``C (I - factor A_bar**length)``.

The one step of `ssm_kernel_dplr` that needs the state matrix in full. A model given by halves of conjugate pairs is
written in real coordinates, (real parts, imaginary parts), which is a quarter of the work of complex ones.
"""

from collections.abc import Callable
from typing import Any

from linscan._arrays import Array, namespace

_ELEMENTS = 1 << 22  # of the matrix powers the gradient holds at a time


def truncate_vjp(
    Lambda: Array, P: Array, Q: Array, C: Array, tau: Array, factor: float, length: int, pairs: bool
) -> tuple[Array, Callable[[Array], tuple[Array, ...]]]:
    """``C (I - factor A_bar**length)`` for bilinear A_bar with tau = dt / 2, and its pullback.

    Parameters
    ----------
    Lambda, C : array, shape (H, N)
        Complex128, as are `P` and `Q` of shape (H, R, N).
    P, Q, length, pairs
        As in `ssm_kernel_dplr`.
    tau : array, shape (H,)
        Half the time step.
    factor : float

    Returns
    -------
    C_truncated : array, shape (H, N)
    pullback : callable
        Takes the gradient of `C_truncated`, returns those of `Lambda`, `P`, `Q`, `C` and `tau`.
    """
    # The pullback makes the matrix powers anew, for a few channels at a time: they are large.
    width = Lambda.shape[1] * (2 if pairs else 1)
    step = max(1, _ELEMENTS // max(1, width * width * max(1, length.bit_length())))
    groups = [slice(first, first + step) for first in range(0, max(1, len(C)), step)]
    arrays = Lambda, P, Q, C, tau
    xp = namespace(C)
    results = [_truncate(tuple(x[g] for x in arrays), factor, length, pairs)[0] for g in groups]

    def pullback(d: Array) -> tuple[Array, ...]:
        grads = [_pullback(tuple(x[g] for x in arrays), factor, length, pairs, d[g]) for g in groups]
        return tuple(xp.concatenate(parts) for parts in zip(*grads, strict=True))

    return xp.concatenate(results), pullback


def _truncate(arrays: tuple[Array, ...], factor: float, length: int, pairs: bool) -> Any:
    """The result, and all that its gradient needs: A, A_bar's powers of two, and the partial products of C."""
    Lambda, P, Q, C, tau = arrays
    xp = namespace(C)
    A = _state_matrix(Lambda, P, Q, pairs)
    eye = xp.eye(A.shape[-1])
    powers = [2 * xp.linalg.inv(eye - tau[:, None, None] * A) - eye]  # (I - tau A)^-1 (I + tau A)
    rows = [_to_row(C, pairs)]
    for bit in range(length.bit_length()):
        if bit:
            powers.append(powers[-1] @ powers[-1])
        rows.append(rows[-1] @ powers[-1] if length >> bit & 1 else rows[-1])
    return _from_row(rows[0] - factor * rows[-1], pairs), A, powers, rows


def _pullback(arrays: tuple[Array, ...], factor: float, length: int, pairs: bool, d: Array) -> tuple[Array, ...]:
    _, A, powers, rows = _truncate(arrays, factor, length, pairs)
    _, P, Q, C, tau = arrays
    xp = namespace(C)
    dresult = _to_row(d, pairs)
    drow, dpower = -factor * dresult, xp.zeros_like(A)
    for bit in reversed(range(length.bit_length())):
        adjoint = _adjoint(powers[bit])
        if bit + 1 < length.bit_length():  # the next power is this one squared
            dpower = dpower @ adjoint + adjoint @ dpower
        if length >> bit & 1:
            dpower = dpower + _adjoint(rows[bit]) @ drow
            drow = drow @ adjoint
    # A_bar = 2 M^-1 - I with M = I - tau A: dM = -M^-* (2 dA_bar) M^-*.
    inverse = _adjoint(powers[0] + xp.eye(A.shape[-1])) / 2
    dM = -2 * inverse @ dpower @ inverse
    dtau = -(A.conj() * dM).real.sum(axis=(1, 2))
    return *_state_matrix_pullback(-tau[:, None, None] * dM, P, Q, pairs), _from_row(dresult + drow, pairs), dtau


def _to_row(C: Array, pairs: bool) -> Array:
    """(H, 1, N), or in real coordinates (H, 1, 2N): Re(C x) = Re C Re x - Im C Im x."""
    row = namespace(C).concatenate((C.real, -C.imag), axis=-1) if pairs else C
    return row[:, None]


def _from_row(row: Array, pairs: bool) -> Array:
    row = row[:, 0]
    n = row.shape[-1] // 2
    return row[:, :n] - 1j * row[:, n:] if pairs else row


def _state_matrix(Lambda: Array, P: Array, Q: Array, pairs: bool) -> Array:
    """``diag(Lambda) - sum_r P_r Q_r*``; with pairs, of the model and its conjugate, in real coordinates."""
    xp = namespace(Lambda)
    i, n = xp.arange(Lambda.shape[1]), Lambda.shape[1]
    if not pairs:
        A = -(P.swapaxes(1, 2) @ Q.conj())
        A[:, i, i] += Lambda
        return A
    p, q = (xp.concatenate((x.real, x.imag), axis=-1) for x in (P, Q))
    A = -2 * (p.swapaxes(1, 2) @ q)  # x' = Lambda x - P 2 Re(Q* x)
    A[:, i, i] += Lambda.real
    A[:, n + i, n + i] += Lambda.real
    A[:, i, n + i] -= Lambda.imag
    A[:, n + i, i] += Lambda.imag
    return A


def _state_matrix_pullback(dA: Array, P: Array, Q: Array, pairs: bool) -> tuple[Array, Array, Array]:
    xp = namespace(dA)
    i, n = xp.arange(P.shape[2]), P.shape[2]
    if not pairs:
        return dA[:, i, i], -(Q @ dA.swapaxes(1, 2)), -(P @ dA.conj())
    dLambda = dA[:, i, i] + dA[:, n + i, n + i] + 1j * (dA[:, n + i, i] - dA[:, i, n + i])
    p, q = (xp.concatenate((x.real, x.imag), axis=-1) for x in (P, Q))
    dp, dq = -2 * (q @ dA.swapaxes(1, 2)), -2 * (p @ dA)
    return dLambda, dp[..., :n] + 1j * dp[..., n:], dq[..., :n] + 1j * dq[..., n:]


def _adjoint(x: Array) -> Array:
    return x.conj().swapaxes(-1, -2)
