"""Products inside a chunk under decay, by halving, and the inverse of a unit triangular matrix, by halving.

``decayed(x, y, g)[t, s] = Σ_d x[t, d] y[s, d] exp(Σ_{s < r <= t} g[r, d])`` for s <= t, and 0 above the diagonal. For
h = 1, 2, 4, … every block of 2h steps gives a square: rows from its second half, columns from its first, both decayed
to the middle by sums of their own half. The exponents of decays are sums, never differences: nothing overflows,
nothing cancels, and g = -inf is exact.
"""

from typing import Any

import numpy as np

from linscan._arrays import Array, namespace
from linscan.engines.reference.decayed_product import after_here


def decayed(x: Array, y: Array, g: Array) -> Array:
    """The lower triangle (…, C, C) of the decayed product; C is a power of two, `g` is (…, C, K) or (…, C, 1)."""
    xp, size = namespace(x), x.shape[-2]
    diagonal = (x * y).sum(axis=-1)
    lead = np.broadcast_shapes(diagonal.shape[:-1], g.shape[:-2])
    product = xp.zeros((*lead, size, size), diagonal.dtype)
    i = xp.arange(size)
    product[..., i, i] = diagonal
    for h in _powers(size):
        late, early = _to_the_middle(xp, g, h)
        _put(product, h, (_halves(x, h, 1) * late) @ (_halves(y, h, 0) * early).swapaxes(-1, -2))
    return product


def decayed_pullback(x: Array, y: Array, g: Array, d: Array) -> tuple[Array, Array]:
    """Gradients of x and y from the one of the product, of which the lower triangle is read; x and y are conjugated."""
    xp, size = namespace(x), x.shape[-2]
    i = xp.arange(size)
    diagonal = d[..., i, i][..., None]
    dx, dy = diagonal * y, diagonal * x
    for h in _powers(size):
        late, early = _to_the_middle(xp, g, h)
        block = _get(d, h)
        to_x = _halves(dx, h, 1)
        to_x += late * (block @ (_halves(y, h, 0) * early))
        to_y = _halves(dy, h, 0)
        to_y += early * (block.swapaxes(-1, -2) @ (_halves(x, h, 1) * late))
    return dx, dy


def unit_inverse(lower: Array) -> Array:
    """``(I - lower)^-1`` of strictly lower triangular matrices (…, C, C), C a power of two.

    [[A, 0], [-B, D]]^-1 = [[A^-1, 0], [D^-1 B A^-1, D^-1]], from blocks of one up: as exact as substitution.
    """
    xp, size = namespace(lower), lower.shape[-1]
    inverse = xp.zeros(lower.shape, lower.dtype)
    i = xp.arange(size)
    inverse[..., i, i] = 1
    for h in _powers(size):
        first, second = (_get(inverse, h, (half, half)) for half in (0, 1))
        _put(inverse, h, second @ _get(lower, h) @ first)
    return inverse


def _powers(size: int) -> list[int]:
    return [1 << i for i in range(size.bit_length() - 1)]


def _halves(x: Array, h: int, which: int) -> Array:
    """The first or second half of every block of 2h steps, a view (…, C / 2h, h, K)."""
    return x.reshape(*x.shape[:-2], x.shape[-2] // (2 * h), 2, h, x.shape[-1])[..., which, :, :]


def _to_the_middle(xp: Any, g: Array, h: int) -> tuple[Array, Array]:
    return xp.exp(xp.cumsum(_halves(g, h, 1), axis=-2)), xp.exp(after_here(_halves(g, h, 0)))


def _where(xp: Any, size: int, h: int, at: tuple[int, int]) -> tuple[Any, ...]:
    n = xp.arange(size // (2 * h))
    rows, columns = (slice(half * h, half * h + h) for half in at)
    return (..., n, rows, n, columns)


def _get(x: Array, h: int, at: tuple[int, int] = (1, 0)) -> Array:
    """One quarter of every 2h by 2h block on the diagonal, (…, C / 2h, h, h)."""
    xp, size = namespace(x), x.shape[-1]
    blocks = x.reshape(*x.shape[:-2], size // (2 * h), 2 * h, size // (2 * h), 2 * h)
    return xp.moveaxis(blocks[_where(xp, size, h, at)], 0, -3)


def _put(x: Array, h: int, quarter: Array) -> None:
    xp, size = namespace(x), x.shape[-1]
    blocks = x.reshape(*x.shape[:-2], size // (2 * h), 2 * h, size // (2 * h), 2 * h)
    blocks[_where(xp, size, h, (1, 0))] = xp.moveaxis(quarter, -3, 0)
