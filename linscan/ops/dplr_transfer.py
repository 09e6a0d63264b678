"""The kernel of a DPLR model from its generating function on a circle, and the gradient, for one group of channels.

At ``omega = exp(-2i phi)`` the bilinear rule turns ``(g - Lambda)^-1`` into ``1 / (i sin phi - z cos phi)`` with
``z = tau Lambda``. With ``Y_ij = sum_n left_i right_j / (i sin phi - z cos phi)`` for left = (C, Q*...) and right =
(B, P...), the generating function of the truncated kernel is, by the Woodbury identity with ``kappa = tau cos phi``,
``tau exp(i phi) (Y_00 - kappa Y_0P (I + kappa Y_PP)^-1 Y_P0)``. At the Nyquist point cos phi is 0: nothing is infinite.
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from linscan._arrays import Array, namespace
from linscan.engines import pick


class Model(NamedTuple):
    """Channels, flattened: complex128 of shape (H, N), P and Q (H, R, N), and tau = dt / 2 of shape (H,)."""

    Lambda: Array
    P: Array
    Q: Array
    B: Array
    C: Array
    tau: Array


class Circle(NamedTuple):
    """Where the generating function is taken, and how to come back from there."""

    length: int
    sin: Array
    cos: Array
    turn: Array  # exp(i phi)
    growth: Array  # radius**-l
    half: bool  # only the points a real kernel needs
    pairs: bool

    @property
    def denominator(self) -> tuple[Array, Array, Array]:
        """Base, p and q of ``base + alpha p + beta q``: see `_sums`."""
        if self.pairs:
            return -self.sin * self.sin, self.cos * self.cos, -2j * self.sin * self.cos
        return 1j * self.sin, -self.cos, -1j * self.cos

    @property
    def factors(self) -> tuple[Any, Any]:
        """What the sums with the first and the second half of the weights are multiplied by."""
        return (1j * self.sin, -self.cos) if self.pairs else (1.0, 1j)


def circle(xp: ModuleType, length: int, inset: float, half: bool, pairs: bool) -> Circle:
    """`length` points of the circle of radius exp(-inset / length), or those with a non-negative angle."""
    phi = xp.arange(length // 2 + 1 if half else length) * (np.pi / length) - 0.5j * inset / length
    growth = xp.exp(xp.arange(length) * (inset / length))
    return Circle(length, xp.sin(phi), xp.cos(phi), xp.exp(1j * phi), growth, half, pairs)


def kernel(m: Model, at: Circle, dtype: np.dtype, workers: Any) -> Array:
    """The kernels of a group, (H, length)."""
    fft = namespace(m.C).fft
    U, _, _ = _woodbury(_sums(m, at, dtype, workers)[0], m.tau[:, None] * at.cos)
    values = m.tau[:, None] * at.turn * U
    return at.growth * (fft.irfft(values, at.length) if at.half else fft.ifft(values))


def kernel_pullback(m: Model, at: Circle, dk: Array, dtype: np.dtype, workers: Any) -> Model:
    """The gradients of all that `kernel` takes, for the gradient `dk` of what it returns."""
    # The adjoint of ifft is fft / length; a real transform shows all points but the first and the Nyquist point twice.
    xp, tau = namespace(dk), m.tau[:, None]
    if at.half:
        dvalues = xp.fft.rfft(dk * at.growth) / at.length
        dvalues[:, 1 : (at.length + 1) // 2] *= 2
    else:
        dvalues = xp.fft.fft(dk * at.growth) / at.length
    Y, z, left, right, v = _sums(m, at, dtype, workers)
    U, u, x = _woodbury(Y, tau * at.cos)
    # values = tau turn U and dU/dY_ij = l_i r_j with l = (1, -kappa u), r = (1, -kappa x), dU/dkappa = -u x,
    # where x = (I + kappa Y_PP)^-1 Y_P0 and u = (I + kappa Y_PP)^-T Y_0P.
    dU = xp.conj(tau * at.turn) * dvalues
    dkappa = -xp.conj((u * x).sum(axis=1)) * dU
    dtau = (xp.conj(at.turn * U) * dvalues + xp.conj(at.cos) * dkappa).real.sum(axis=1)
    one = xp.ones_like(dU)[:, None]
    kappa = (tau * at.cos)[:, None]
    sides = (xp.concatenate((one, -kappa * side), axis=1).conj() for side in (u, x))
    dY = dU[:, None, None] * next(sides)[:, :, None] * next(sides)[:, None]
    dz, dv = _sums_pullback(m, at, z, v, dY, dtype, workers)
    dleft, dright = (dv * right.conj()[:, None]).sum(axis=2), (dv * left.conj()[:, :, None]).sum(axis=1)
    dtau = dtau + (m.Lambda.conj() * dz).real.sum(axis=1)
    return Model(tau * dz, dright[:, 1:], dleft[:, 1:].conj(), dright[:, 0], dleft[:, 0], dtau)


def _sums(m: Model, at: Circle, dtype: np.dtype, workers: Any) -> tuple[Array, ...]:
    """Y of shape (H, 1 + R, 1 + R, points), z, left, right, and the numerators v = left_i right_j."""
    # With pairs, v / (i s - z c) and its conjugate mode's share are (2 Re(v) i s - 2 Re(v z*) c) over one real-weighted
    # denominator |z|^2 c^2 - s^2 - 2 Re(z) i s c: sums over half the modes with real weights.
    xp = namespace(m.C)
    z = m.tau[:, None] * m.Lambda
    left = xp.concatenate((m.C[:, None], m.Q.conj()), axis=1)
    right = xp.concatenate((m.B[:, None], m.P), axis=1)
    v = left[:, :, None] * right[:, None]
    sums = pick("ssm_kernel_dplr", dtype, z)(*_weights(z, v, at.pairs), *at.denominator, workers=workers)
    first, second = sums.reshape(len(z), 2, *v.shape[1:3], len(at.sin)).swapaxes(0, 1)
    return at.factors[0] * first + at.factors[1] * second, z, left, right, v


def _weights(z: Array, v: Array, pairs: bool) -> tuple[Array, Array, Array]:
    """Alpha and beta of the denominators, and the real weights (H, 2 (1 + R)**2, N)."""
    xp = namespace(z)
    if pairs:
        alpha, beta, weights = (z * z.conj()).real, z.real, (2 * v.real, 2 * (v * z.conj()[:, None, None]).real)
    else:
        alpha, beta, weights = z.real, z.imag, (v.real, v.imag)
    w = xp.stack(weights, axis=1).reshape(len(z), 2 * v.shape[1] * v.shape[2], z.shape[1])
    return xp.ascontiguousarray(alpha), xp.ascontiguousarray(beta), w


def _sums_pullback(
    m: Model, at: Circle, z: Array, v: Array, dY: Array, dtype: np.dtype, workers: Any
) -> tuple[Array, Array]:
    """The gradients of z and of the numerators v."""
    xp = namespace(z)
    dsums = xp.stack([np.conj(f) * dY for f in at.factors], axis=1)
    dsums = dsums.reshape(len(z), 2 * v.shape[1] * v.shape[2], len(at.sin))
    run = pick("ssm_kernel_dplr_pullback", dtype, z)
    dalpha, dbeta, dw = run(*_weights(z, v, at.pairs), *at.denominator, dsums, workers=workers)
    first, second = dw.reshape(len(z), 2, *v.shape[1:]).swapaxes(0, 1)
    if not at.pairs:
        return dalpha + 1j * dbeta, first + 1j * second
    dz = 2 * dalpha * z + dbeta + 2 * (second * v).sum(axis=(1, 2))
    return dz, 2 * first + 2 * second * z[:, None, None]


def _woodbury(Y: Array, kappa: Array) -> tuple[Array, Array, Array]:
    """``Y_00 - kappa Y_0P (I + kappa Y_PP)^-1 Y_P0``, and the solutions u and x from both sides, (H, R, points)."""
    xp = namespace(Y)
    rank = Y.shape[1] - 1
    row, column = Y[:, 0, 1:], Y[:, 1:, 0]
    if rank == 1:
        inner = 1 + kappa[:, None] * Y[:, 1, 1:]
        u, x = row / inner, column / inner
    else:
        inner = xp.moveaxis(kappa[:, None, None] * Y[:, 1:, 1:], -1, 1) + xp.eye(rank)
        u, x = (
            xp.moveaxis(xp.linalg.solve(A, xp.moveaxis(b, -1, 1)[..., None])[..., 0], 1, -1)
            for A, b in ((inner.swapaxes(-1, -2), row), (inner, column))
        )
    return Y[:, 0, 0] - kappa * (row * x).sum(axis=1), u, x
