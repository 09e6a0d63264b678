"""A grid as four sequences and back: how one-dimensional recurrences see images (VMamba)."""

from collections.abc import Callable, Sequence
from typing import Any

from linscan import _arrays
from linscan._arrays import Array


def cross_scan(x: Array) -> Array:
    """Four walks over a grid: along y within x, along x within y, and both backwards.

    Parameters
    ----------
    x : array_like
        (…, X, Y, D), of any dtype.

    Returns
    -------
    y : array
        (…, 4, X Y, D), a new array: sequences for any recurrence with time before the features. Walk 0 takes the cells
        in memory order, walk 1 those of the transposed grid; walks 2 and 3 are 0 and 1 from the end.

    Raises
    ------
    ValueError
        If `x` has fewer than three axes.

    See Also
    --------
    cross_merge : the way back, and the gradient.

    Notes
    -----
    One copy for each walk. Its adjoint is `cross_merge` exactly.

    References
    ----------
    .. [1] Y. Liu et al., "VMamba: visual state space model", 2024, arXiv:2401.10166.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import cross_scan
    >>> cross_scan(np.arange(6).reshape(2, 3, 1))[..., 0]
    array([[0, 1, 2, 3, 4, 5],
           [0, 3, 1, 4, 2, 5],
           [5, 4, 3, 2, 1, 0],
           [5, 2, 4, 1, 3, 0]])
    """
    xp, x = _arrays.take("cross_scan", x=x)
    x = xp.asarray(x)
    if x.ndim < 3:
        raise ValueError(f"cross_scan: x must have shape (…, X, Y, D); got {x.shape}")
    y = xp.empty((*x.shape[:-3], 4, x.shape[-3] * x.shape[-2], x.shape[-1]), x.dtype)
    for walk, grid in enumerate((x, x.swapaxes(-3, -2))):
        y[..., walk, :, :] = grid.reshape(*x.shape[:-3], -1 if x.size else y.shape[-2], x.shape[-1])
    y[..., 2:, :, :] = y[..., :2, ::-1, :]
    return y


def cross_merge(y: Array, shape: Sequence[int]) -> Array:
    """The sum, at every cell of a grid, of what four walks found there: the way back of `cross_scan`.

    Parameters
    ----------
    y : array_like
        (…, 4, X Y, D): sequences in the order of `cross_scan`.
    shape : pair of int
        The grid, (X, Y).

    Returns
    -------
    x : array
        (…, X, Y, D), a new array in `y`'s dtype; 16-bit types are summed in float32.

    Raises
    ------
    ValueError
        If `y` does not hold four walks over such a grid.

    See Also
    --------
    cross_scan : the walks.

    Notes
    -----
    The exact adjoint of `cross_scan`; after it, without anything between, every cell is 4 times what it was.

    References
    ----------
    .. [1] Y. Liu et al., "VMamba: visual state space model", 2024, arXiv:2401.10166.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import cross_merge, cross_scan, scan
    >>> x = np.zeros((3, 3, 1))
    >>> x[1, 1] = 1
    >>> cross_merge(scan(0.5, cross_scan(x), axis=-2), (3, 3))[..., 0]
    array([[0.125, 0.625, 0.5  ],
           [0.625, 4.   , 0.625],
           [0.5  , 0.625, 0.125]])
    """
    xp, y = _arrays.take("cross_merge", y=y)
    y = xp.asarray(y)
    width, height = (_arrays.check_count("cross_merge", "shape", n) for n in shape)
    if y.ndim < 3 or y.shape[-3:-1] != (4, width * height):
        raise ValueError(f"cross_merge: y must have shape (…, 4, {width} * {height}, D); got {y.shape}")
    pair = y.astype(_arrays.accum_dtype(y.dtype), copy=False)
    pair = pair[..., :2, :, :] + pair[..., 2:, ::-1, :]
    rows, columns = (
        pair[..., walk, :, :].reshape(*y.shape[:-3], *grid, y.shape[-1])
        for walk, grid in enumerate(((width, height), (height, width)))
    )
    return (rows + columns.swapaxes(-3, -2)).astype(y.dtype, copy=False)


def cross_scan_vjp(x: Array) -> tuple[Array, Callable[[Array | None], Array]]:
    """`cross_scan` and its pullback, which is `cross_merge`.

    Parameters
    ----------
    x : array_like
        As in `cross_scan`.

    Returns
    -------
    y : array
        What `cross_scan` returns.
    pullback : callable
        ``pullback(dy)`` returns ``dx``, of the shape and dtype of `x`; None means zero.

    Raises
    ------
    ValueError
        As in `cross_scan`; the pullback raises ValueError if `dy` has the wrong shape.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import cross_scan_vjp
    >>> y, pullback = cross_scan_vjp(np.zeros((1, 2, 1)))
    >>> pullback(np.arange(8.0).reshape(4, 2, 1))[..., 0]
    array([[14., 14.]])
    """
    y = cross_scan(x)
    shape, like = getattr(x, "shape", None) or y.shape, x

    def pullback(dy: Array | None) -> Array:
        dy = _arrays.cotangent("cross_scan_vjp", "dy", dy, y)
        return _as(cross_merge(dy, shape[-3:-1]), like)

    return y, pullback


def cross_merge_vjp(y: Array, shape: Sequence[int]) -> tuple[Array, Callable[[Array | None], Array]]:
    """`cross_merge` and its pullback, which is `cross_scan`.

    Parameters
    ----------
    y, shape
        As in `cross_merge`.

    Returns
    -------
    x : array
        What `cross_merge` returns.
    pullback : callable
        ``pullback(dx)`` returns ``dy``, of the shape and dtype of `y`; None means zero.

    Raises
    ------
    ValueError
        As in `cross_merge`; the pullback raises ValueError if `dx` has the wrong shape.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import cross_merge_vjp
    >>> x, pullback = cross_merge_vjp(np.ones((4, 2, 1)), (1, 2))
    >>> pullback(np.array([[[1.0], [2.0]]]))[..., 0]
    array([[1., 2.],
           [1., 2.],
           [2., 1.],
           [2., 1.]])
    """
    x = cross_merge(y, shape)

    def pullback(dx: Array | None) -> Array:
        return _as(cross_scan(_arrays.cotangent("cross_merge_vjp", "dx", dx, x)), y)

    return x, pullback


def _as(grad: Array, like: Any) -> Array:
    """A gradient in its argument's dtype, float64 for integers."""
    result = _arrays.grad_like(grad, _arrays.take("cross_scan", x=like)[1])
    return grad if result is None else result
