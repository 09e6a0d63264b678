"""Normalisations over channels or over the batch: ``y = (x - mean) / sqrt(var + eps) * scale + shift``.

A pullback takes a second array, `around`, to be added to dx: what flows around the norm of a residual block.
"""

from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick


def layer_norm(x: Array, scale: Array | None = None, shift: Array | None = None, *, eps: float = 1e-5) -> Array:
    """Mean and variance of every row of channels taken out, ``y = (x - mean) / sqrt(var + eps) * scale + shift``.

    Parameters
    ----------
    x : array_like, shape (…, D)
        Real.
    scale, shift : array_like, shape (D,), optional
        None means 1 and 0.
    eps : float, default 1e-5
        Added to the variance (the mean of squares around the mean).

    Returns
    -------
    y : array
        Of the shape of `x` and the promoted dtype; 16-bit types are computed in float32.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        For a complex or unsupported dtype, or host and GPU arrays mixed.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.norm import layer_norm
    >>> layer_norm(np.array([[1.0, 3.0], [5.0, 5.0]])).round(3)
    array([[-1.,  1.],
           [ 0.,  0.]])
    """
    return layer_norm_vjp(x, scale, shift, eps=eps)[0]


def layer_norm_vjp(
    x: Array, scale: Array | None = None, shift: Array | None = None, *, eps: float = 1e-5
) -> tuple[Array, Callable[..., tuple[Array | None, ...]]]:
    """`layer_norm` and its pullback, ``pullback(dy)`` to ``(dx, dscale, dshift)``."""
    return _rows("layer_norm", x, scale, shift, eps, centred=True)


def rms_norm(x: Array, scale: Array | None = None, *, eps: float = 1e-5) -> Array:
    """Every row of channels divided by its root mean square, ``y = x / sqrt(mean(x²) + eps) * scale``.

    Parameters and errors are those of `layer_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.norm import rms_norm
    >>> rms_norm(np.array([[1.0, 7.0]])).round(3)
    array([[0.2, 1.4]])
    """
    return rms_norm_vjp(x, scale, eps=eps)[0]


def rms_norm_vjp(
    x: Array, scale: Array | None = None, *, eps: float = 1e-5
) -> tuple[Array, Callable[..., tuple[Array | None, ...]]]:
    """`rms_norm` and its pullback, ``pullback(dy)`` to ``(dx, dscale)``."""
    y, back = _rows("rms_norm", x, scale, None, eps, centred=False)
    return y, lambda dy, around=None: back(dy, around)[:2]


def batch_norm(
    x: Array, scale: Array | None, shift: Array | None, mean: Array, var: Array, *, eps: float = 1e-5
) -> Array:
    """Given means and variances of the channels taken out, ``y = (x - mean) / sqrt(var + eps) * scale + shift``.

    Parameters
    ----------
    x : array_like, shape (…, D)
        Real.
    scale, shift : array_like, shape (D,), optional
        None means 1 and 0.
    mean, var : array_like, shape (D,)
        What a layer has gathered while it was trained.
    eps : float, default 1e-5

    Returns
    -------
    y : array
        As in `layer_norm`, which also names the errors.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.norm import batch_norm
    >>> batch_norm(np.array([[5.0], [1.0]]), None, None, np.array([3.0]), np.array([4.0])).round(3).ravel()
    array([ 1., -1.])
    """
    return batch_norm_vjp(x, scale, shift, mean, var, eps=eps)[0]


def batch_norm_vjp(
    x: Array, scale: Array | None, shift: Array | None, mean: Array, var: Array, *, eps: float = 1e-5
) -> tuple[Array, Callable[..., tuple[Array | None, ...]]]:
    """`batch_norm` and its pullback, ``pullback(dy)`` to ``(dx, dscale, dshift, dmean, dvar)``."""
    who = "batch_norm"
    given, x, (scale, shift, mean, var) = _prepare(who, x=x, scale=scale, shift=shift, mean=mean, var=var)
    y = pick("batch_norm", x.dtype, x)(_arrays.matrix(x), scale, shift, mean, var, eps)[0].reshape(x.shape)
    run = pick("batch_norm_pullback", x.dtype, x)

    def pullback(dy: Array | None, around: Array | None = None) -> tuple[Array | None, ...]:
        g, around = _flowing(who, dy, around, y)
        dx, dscale, dshift = run(g, _arrays.matrix(x), scale, mean, var, eps, around, own=False)
        # y = n scale + shift with n = (x - mean) r, r = (var + eps)^(-1/2): dmean is -r of every Σ dy scale, which is
        # dshift scale, and dn = -n r² / 2 dvar turns Σ dy n scale, which is dscale scale, into dvar.
        r = (var + eps) ** -0.5
        through = r if scale is None else r * scale
        grads = (dx.reshape(x.shape), dscale, dshift, -dshift * through, dscale * through * (r / -2))
        return tuple(_arrays.grad_like(grad, like) for grad, like in zip(grads, given, strict=True))

    return y, pullback


def batch_statistics_norm_vjp(
    x: Array, scale: Array | None, shift: Array | None, *, eps: float = 1e-5
) -> tuple[tuple[Array, Array, Array], Callable[..., tuple[Array | None, ...]]]:
    """`batch_norm` by the mean and variance of `x` over all axes but the last: what training does.

    Parameters
    ----------
    x, scale, shift, eps
        As in `batch_norm`.

    Returns
    -------
    y, mean, var : array
        The result, and the (D,) statistics for the running ones; nothing flows back through those two.
    pullback : callable
        ``pullback(dy)`` to ``(dx, dscale, dshift)``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.norm import batch_statistics_norm_vjp
    >>> (y, mean, var), pullback = batch_statistics_norm_vjp(np.array([[5.0], [1.0]]), None, None)
    >>> mean, var
    (array([3.]), array([4.]))
    """
    who = "batch_norm"
    given, x, (scale, shift) = _prepare(who, x=x, scale=scale, shift=shift)
    y, mean, var = pick("batch_norm", x.dtype, x)(_arrays.matrix(x), scale, shift, None, None, eps)
    y, run = y.reshape(x.shape), pick("batch_norm_pullback", x.dtype, x)

    def pullback(dy: Array | None, around: Array | None = None) -> tuple[Array | None, ...]:
        g, around = _flowing(who, dy, around, y)
        dx, *grads = run(g, _arrays.matrix(x), scale, mean, var, eps, around, own=True)
        grads = (dx.reshape(x.shape), *grads)
        return tuple(_arrays.grad_like(grad, like) for grad, like in zip(grads, given, strict=True))

    return (y, mean, var), pullback


def _rows(
    who: str, x: Array, scale: Array | None, shift: Array | None, eps: float, *, centred: bool
) -> tuple[Any, Any]:
    """Normalisation of every row by itself, about its mean or about 0."""
    given, x, (scale, shift) = _prepare(who, x=x, scale=scale, shift=shift)
    y, mean, r = pick("row_norm", x.dtype, x)(_arrays.matrix(x), scale, shift, eps, centred=centred)
    y, run = y.reshape(x.shape), pick("row_norm_pullback", x.dtype, x)

    def pullback(dy: Array | None, around: Array | None = None) -> tuple[Array | None, ...]:
        g, around = _flowing(who, dy, around, y)
        dx, *grads = run(g, _arrays.matrix(x), scale, mean, r, around)
        grads = (dx.reshape(x.shape), *grads)
        return tuple(_arrays.grad_like(grad, like) for grad, like in zip(grads, given, strict=True))

    return y, pullback


def _flowing(who: str, dy: Array | None, around: Array | None, y: Array) -> tuple[Array, Array | None]:
    """The cotangent and what is added to dx, as matrices."""
    around = None if around is None else _arrays.matrix(_arrays.cotangent(who, "around", around, y))
    return _arrays.matrix(_arrays.cotangent(who, "dy", dy, y)), around


def _prepare(who: str, **named: Any) -> tuple[list[Any], Array, list[Any]]:
    """The arguments as given, x in the result's dtype, and the others in the one arithmetic is done in."""
    given, (x, *rest) = _arrays.take_real(who, **named)
    if not x.ndim:
        raise ValueError(f"{who}: x must have an axis of channels; got ()")
    for name, a in zip([*named][1:], rest, strict=True):
        if a is not None and a.shape != x.shape[-1:]:
            raise ValueError(f"{who}: {name} must have shape {x.shape[-1:]}; got {a.shape}")
    xp, wide = _arrays.namespace(x), _arrays.accum_dtype(x.dtype)
    return given, x, [None if a is None else _arrays.cast(xp, a, wide) for a in rest]
