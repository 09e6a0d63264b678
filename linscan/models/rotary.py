"""Rotary embeddings: pairs of features turned by angles that grow with the position.

Products of two vectors turned so depend on the distance of their positions alone.

J. Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021, arXiv:2104.09864.
"""

from typing import Any

import numpy as np

from linscan._arrays import Array, namespace

_SLOWEST = 10_000.0  # the longest wavelength over 2π


def turns(positions: Any, width: int, like: Array) -> tuple[Array, Array]:
    """Cosines and sines for `positions` on the host, (…, width/2), made in double, in the library and dtype of `like`.

    `width` features are turned, feature j with feature ``j + width/2`` by ``position / 10000^(2j/width)``.
    """
    xp = namespace(like)
    angles = np.asarray(positions, np.float64)[..., None] * _SLOWEST ** (-2 * np.arange(width // 2) / width)
    return xp.asarray(np.cos(angles).astype(like.dtype)), xp.asarray(np.sin(angles).astype(like.dtype))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """The first features of `x`, twice as many as the angles, turned; the rest as they are. ``-sin`` turns back."""
    n = cos.shape[-1]
    first, second = x[..., :n], x[..., n : 2 * n]
    turned = [first * cos - second * sin, second * cos + first * sin, x[..., 2 * n :]]
    return namespace(x).concatenate(turned, -1)
