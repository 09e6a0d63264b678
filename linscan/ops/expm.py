"""Exponential of small matrices, its derivative and its inverse, batched over leading axes, on NumPy and CuPy alike.

Arguments are float64 or complex128 arrays ``(..., N, N)``. SciPy's expm loops over the batch in Python and CuPy's takes
one matrix and synchronises, so both libraries run this code. A matrix's bits do not depend on the rest of the batch.
"""

from math import comb, perm

import numpy as np

from linscan._arrays import Array, host_any, namespace

# The [13/13] Padé approximant of exp, and the norm up to which its backward error is below eps/2 [1]. Numerator and
# denominator start with exactly 1, and so does the exponential of zero.
_PADE = [comb(13, k) / perm(26, k) for k in range(14)]
_RADIUS = 4.25
_SQUARINGS = 32  # at most: norms up to 1e10; on the GPU, where the number needed is not looked at, always
_SWEEPS = 16
_ROOTS = 24
_ROOT_STEPS = 40
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def expm(x: Array) -> Array:
    """``e^x`` by balancing, scaling and squaring with a Padé approximant.

    References
    ----------
    .. [1] A. H. Al-Mohy and N. J. Higham, "A new scaling and squaring algorithm for the matrix exponential", SIAM J.
       Matrix Anal. Appl. 31(3), 2009, doi:10.1137/09074721X.
    """
    xp = namespace(x)
    eye = xp.eye(x.shape[-1], dtype=x.dtype)
    units = _units(x)
    x = x * units
    x2 = x @ x
    x4 = x2 @ x2
    x6 = x4 @ x2
    # Norms of powers, not the norm: a matrix far from normal would otherwise be scaled too far down and lose digits.
    size = xp.maximum(_norm(x4) ** 0.25, _norm(x6) ** (1 / 6))
    squarings = xp.ceil(xp.log2(xp.maximum(xp.where(xp.isfinite(size), size, 0), _RADIUS) / _RADIUS))
    scale = 2.0**-squarings
    x, x2, x4, x6 = x * scale, x2 * scale**2, x4 * scale**4, x6 * scale**6
    c = _PADE
    odd = x6 @ (c[13] * x6 + c[11] * x4 + c[9] * x2) + c[7] * x6 + c[5] * x4 + c[3] * x2 + c[1] * eye
    even = x6 @ (c[12] * x6 + c[10] * x4 + c[8] * x2) + c[6] * x6 + c[4] * x4 + c[2] * x2 + c[0] * eye
    odd = x @ odd
    result = xp.linalg.solve(even - odd, even + odd)
    for i in range(_SQUARINGS):
        more = i < squarings
        if not host_any(more, otherwise=True):
            break
        result = result @ xp.where(more, result, eye)
    return result / units


def _units(x: Array) -> Array:
    """Powers of two ``d[j] / d[i]`` that bring each row's norm to about its column's: a change of the states' units.

    Physical systems mix units; a matrix of entries 1 and 1e12 would lose the difference to squarings it does not need.
    """
    xp = namespace(x)
    size = abs(x) * (1 - xp.eye(x.shape[-1]))
    exponent = xp.zeros(x.shape[:-1])
    large = _norm(x)[..., 0] > _RADIUS  # the others need no squarings
    for _ in range(_SWEEPS):
        row, column = size.sum(axis=-1), size.sum(axis=-2)
        coupled = large & (row > 0) & (column > 0)
        # All at once, so each takes half of its share: two states that look at each other would otherwise swap places.
        step = xp.rint(xp.log2(xp.where(coupled, row, 1) / xp.where(coupled, column, 1)) / 4)
        step = xp.where(xp.isfinite(step), step, 0)
        if not host_any(step != 0, otherwise=True):
            break
        size = size * 2.0 ** (step[..., None, :] - step[..., :, None])
        exponent = exponent + step
    return 2.0 ** (exponent[..., None, :] - exponent[..., :, None])


def expm_adjoint(x: Array, grad: Array) -> Array:
    """Gradient at `x` of a function of ``e^x`` whose gradient at ``e^x`` is `grad`."""
    # d e^x along v is L(x, v), the integral over s in [0, 1] of e^(sx) v e^((1-s)x). Its adjoint is L(x^H, grad), and
    # exp [[x, v], [0, x]] holds L(x, v) in its upper right corner: e^x and L come out of the same approximant.
    xp = namespace(x)
    n = x.shape[-1]
    scale = unit_scale(grad)
    block = xp.zeros((*x.shape[:-2], 2 * n, 2 * n), x.dtype)
    block[..., :n, :n] = block[..., n:, n:] = conj_transpose(x)
    block[..., :n, n:] = grad * scale
    return expm(block)[..., :n, n:] / scale


def logm(x: Array) -> Array:
    """Principal logarithm of `x`; NaN or nonsense where it does not exist.

    Square roots until `x` is near 1, then Gauss-Legendre quadrature of ``∫ y (1 + s y)⁻¹ ds`` with ``y = x - 1``, which
    is the [8/8] Padé approximant of ``log(1 + y)``.

    References
    ----------
    .. [1] S. H. Cheng, N. J. Higham, C. S. Kenney, A. J. Laub, "Approximating the logarithm of a matrix to specified
       accuracy", SIAM J. Matrix Anal. Appl. 22(4), 2001, doi:10.1137/S0895479899364015.
    """
    xp = namespace(x)
    eye = xp.eye(x.shape[-1], dtype=x.dtype)
    scale = xp.ones((*x.shape[:-2], 1, 1))
    for _ in range(_ROOTS):
        more = _norm(x - eye) > 0.25
        if not host_any(more, otherwise=True):
            break
        x = xp.where(more, _sqrtm(xp.where(more, x, eye)), x)
        scale = xp.where(more, 2 * scale, scale)
    y = x - eye
    total = xp.zeros_like(y)
    for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
        total += weight / 2 * xp.linalg.solve(eye + (node + 1) / 2 * y, y)
    return total * scale


def _sqrtm(x: Array) -> Array:
    """Principal square root, by the product form of the Denman-Beavers iteration."""
    xp = namespace(x)
    eye = xp.eye(x.shape[-1], dtype=x.dtype)
    m = x
    for _ in range(_ROOT_STEPS):
        more = _norm(m - eye) > 1e-15 * x.shape[-1]
        if not host_any(more, otherwise=True):
            break
        inverse = xp.linalg.inv(m)
        x = xp.where(more, x @ (eye + inverse) / 2, x)
        m = xp.where(more, (eye + (m + inverse) / 2) / 2, m)
    return x


def conj_transpose(x: Array) -> Array:
    """``x^H`` of the last two axes."""
    return x.conj().swapaxes(-1, -2)


def unit_scale(x: Array) -> Array:
    """A power of two that brings the Frobenius norm of `x` (its last two axes) to order 1, without rounding."""
    # Both uses are linear in a block that may have any unit of measure: unscaled, its norm would decide on the number
    # of squarings, and with it on the accuracy of everything else.
    xp = namespace(x)
    size = xp.sqrt((abs(x) ** 2).sum(axis=(-2, -1), keepdims=True))
    _, exponent = xp.frexp(xp.where(xp.isfinite(size), size, 1))
    return xp.ldexp(xp.ones_like(size), -exponent)


def _norm(x: Array) -> Array:
    """The 1-norm, with both axes kept."""
    return abs(x).sum(axis=-2, keepdims=True).max(axis=-1, keepdims=True)
