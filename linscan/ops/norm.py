"""Normalisations over channels or over the batch: ``y = (x - mean) / sqrt(var + eps) * scale + shift``."""

from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._arrays import Array


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
) -> tuple[Array, Callable[[Array | None], tuple[Array | None, ...]]]:
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
) -> tuple[Array, Callable[[Array | None], tuple[Array | None, ...]]]:
    """`rms_norm` and its pullback, ``pullback(dy)`` to ``(dx, dscale)``."""
    y, back = _rows("rms_norm", x, scale, None, eps, centred=False)
    return y, lambda dy: back(dy)[:2]


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
) -> tuple[Array, Callable[[Array | None], tuple[Array | None, ...]]]:
    """`batch_norm` and its pullback, ``pullback(dy)`` to ``(dx, dscale, dshift, dmean, dvar)``."""
    who = "batch_norm"
    _, given, (x, scale, shift, mean, var), dtype = _prepare(who, x=x, scale=scale, shift=shift, mean=mean, var=var)
    r = (var + eps) ** -0.5
    normal = (x - mean) * r
    y = _affine(normal, scale, shift, dtype)

    def pullback(dy: Array | None) -> tuple[Array | None, ...]:
        g = _arrays.cotangent(who, "dy", dy, y)
        dnormal = g if scale is None else g * scale
        dx = dnormal * r
        dvar = dnormal * normal * (r * r / -2)  # d(x - mean) r = -(x - mean) r³ / 2 dvar
        grads = (dx, g * normal, g, -dx, dvar)
        return tuple(_arrays.grad_like(grad, like) for grad, like in zip(grads, given, strict=True))

    return y, pullback


def batch_statistics_norm_vjp(
    x: Array, scale: Array | None, shift: Array | None, *, eps: float = 1e-5
) -> tuple[tuple[Array, Array, Array], Callable[[Array | None], tuple[Array | None, ...]]]:
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
    _, given, (x, scale, shift), dtype = _prepare(who, x=x, scale=scale, shift=shift)
    mean = _mean_row(x)
    about = x - mean
    var = _mean_row(about * about)
    r = (var + eps) ** -0.5
    normal = about * r
    y = _affine(normal, scale, shift, dtype)

    def pullback(dy: Array | None) -> tuple[Array | None, ...]:
        g = _arrays.cotangent(who, "dy", dy, y)
        grads = (_through(g if scale is None else g * scale, normal, r, _mean_row, centred=True), g * normal, g)
        return tuple(_arrays.grad_like(grad, like) for grad, like in zip(grads, given, strict=True))

    return (y, mean, var), pullback


def _rows(
    who: str, x: Array, scale: Array | None, shift: Array | None, eps: float, *, centred: bool
) -> tuple[Any, Any]:
    """Normalisation of every row by itself, about its mean or about 0."""
    _, given, (x, scale, shift), dtype = _prepare(who, x=x, scale=scale, shift=shift)
    about = x - _row_mean(x) if centred else x
    r = (_row_mean(about * about) + eps) ** -0.5
    normal = about * r
    y = _affine(normal, scale, shift, dtype)

    def pullback(dy: Array | None) -> tuple[Array | None, ...]:
        g = _arrays.cotangent(who, "dy", dy, y)
        grads = (_through(g if scale is None else g * scale, normal, r, _row_mean, centred=centred), g * normal, g)
        return tuple(_arrays.grad_like(grad, like) for grad, like in zip(grads, given, strict=True))

    return y, pullback


def _mean_row(x: Array) -> Array:
    """The mean of all rows, (D,)."""
    return _arrays.sum_rows(x) / max(1, x.size // max(1, x.shape[-1]))


def _row_mean(x: Array) -> Array:
    """The mean of every row, (…, 1)."""
    return x.mean(-1, keepdims=True)


def _through(dnormal: Array, normal: Array, r: Array, mean: Callable[[Array], Array], *, centred: bool) -> Array:
    # n = (x - m) r with m and r functions of x through means:
    #   dx = r (dn - mean(dn) - n mean(dn n)): the direct share, then what passes through m, then through r.
    # About 0 there is no share through m.
    dx = dnormal - normal * mean(dnormal * normal)
    return r * (dx - mean(dnormal) if centred else dx)


def _affine(normal: Array, scale: Array | None, shift: Array | None, dtype: Any) -> Array:
    y = normal if scale is None else normal * scale
    return (y if shift is None else y + shift).astype(dtype, copy=False)


def _prepare(who: str, **named: Any) -> tuple[Any, list[Any], list[Any], Any]:
    """The library, the arguments as given, as arrays in the working precision, and the result's dtype."""
    xp, *given = _arrays.take(who, **named)
    dtype = _arrays.result_dtype(who, **dict(zip(named, given, strict=True)))
    if dtype.kind == "c":
        raise TypeError(f"{who}: arguments must be real; got {dtype}")
    arrays: list[Any] = [None if x is None else xp.asarray(x, _arrays.accum_dtype(dtype)) for x in given]
    if not arrays[0].ndim:
        raise ValueError(f"{who}: x must have an axis of channels; got ()")
    for name, x in zip(named, arrays, strict=True):
        if name != "x" and x is not None and x.shape != arrays[0].shape[-1:]:
            raise ValueError(f"{who}: {name} must have shape {arrays[0].shape[-1:]}; got {x.shape}")
    return xp, given, arrays, dtype
