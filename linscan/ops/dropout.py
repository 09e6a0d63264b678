"""Dropout: a share of the entries is left out while a model is trained."""

from collections.abc import Callable

import numpy as np

from linscan import _arrays
from linscan._arrays import Array


def dropout_vjp(
    x: Array, rate: float, rng: np.random.Generator | None, *, tied: bool = False
) -> tuple[Array, Callable[[Array | None], Array]]:
    """Zero a share `rate` of the entries and scale the others up, ``y = x m / (1 - rate)``, and the pullback.

    Parameters
    ----------
    x : array, shape (…, T, D)
    rate : float
        The share, from 0 to below 1.
    rng : numpy.random.Generator or None
        Where the mask comes from, on the host, so that a seed means the same on every device. None: nothing is dropped.
    tied : bool, default False
        One mask for all times of a row and channel.

    Returns
    -------
    y : array
        Of the shape and dtype of `x`; `x` itself if nothing is dropped.
    pullback : callable
        ``pullback(dy)`` to ``dx``.

    Raises
    ------
    ValueError
        For a `rate` outside [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.dropout import dropout_vjp
    >>> y, pullback = dropout_vjp(np.ones((2, 3)), 0.5, np.random.default_rng(0))
    >>> (pullback(np.ones((2, 3))) == y).all()
    np.True_
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate must be in [0, 1); got {rate}")
    xp = _arrays.namespace(x)
    if rng is None or rate == 0:
        return x, lambda dy: _arrays.cotangent("dropout", "dy", dy, x)
    shape = (*x.shape[:-2], 1, x.shape[-1]) if tied else x.shape
    kept = xp.asarray(rng.random(shape, np.float32) >= rate)
    mask = kept.astype(x.dtype) * x.dtype.type(1 / (1 - rate))
    y = x * mask
    return y, lambda dy: _arrays.cotangent("dropout", "dy", dy, y) * mask
