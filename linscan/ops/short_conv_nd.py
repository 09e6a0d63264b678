"""Convolutions of a few taps over several axes that mix channels, as in front of and behind the states of ConvS5."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from linscan import _arrays
from linscan._arrays import Array


def short_conv_nd(u: Array, w: Array, bias: Array | None = None) -> Array:
    r"""Convolution ``y[t] = bias + Σ_j u[t + K // 2 - j] w[j]`` with t and j tuples of indices, zeros outside.

    Parameters
    ----------
    u : array_like
        Signal (…, X, Y, D): as many axes before the features as `w` has taps along. Real or complex.
    w : array_like
        Weights (K, …, D, P): taps along each axis, then a matrix from D to P channels at each tap. Lag 0 is at the
        index ``K // 2`` of each axis, as in `fft_conv_nd` with ``mode="bidirectional"``.
    bias : array_like, optional
        Added to every output; broadcasts to (P,).

    Returns
    -------
    y : array
        (…, X, Y, P), in the promoted dtype.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.

    See Also
    --------
    short_conv : one axis, each channel with its own taps, with state.
    fft_conv_nd : large kernels, each channel by itself.

    Notes
    -----
    One matrix product for each tap; 16-bit types are summed in float32. Libraries of deep learning correlate: their
    weights are these with all tap axes reversed. A NaN reaches the cells that its taps meet.

    References
    ----------
    .. [1] J. T. H. Smith, S. De Mello, J. Kautz, S. W. Linderman and W. Byeon, "Convolutional state space models for
       long-range spatiotemporal modeling", 2023, arXiv:2310.19694.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import short_conv_nd
    >>> u = np.zeros((3, 3, 1))
    >>> u[0, 1] = 1
    >>> short_conv_nd(u, np.arange(9.0).reshape(3, 3, 1, 1))[..., 0]
    array([[3., 4., 5.],
           [6., 7., 8.],
           [0., 0., 0.]])
    """
    xp, u, w, bias, dtype = _prepare("short_conv_nd", u, w, bias)
    compute = _arrays.accum_dtype(dtype)
    y = xp.zeros((*u.shape[:-1], w.shape[-1]), compute)
    if bias is not None:
        y += bias
    for tap, to, at in _overlaps(u.shape, w.shape):
        y[to] += xp.matmul(u[at], w[tap])
    return y.astype(dtype, copy=False)


def short_conv_nd_vjp(
    u: Array, w: Array, bias: Array | None = None
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array, Array | None]]]:
    """`short_conv_nd` and its pullback.

    Parameters
    ----------
    u, w, bias
        As in `short_conv_nd`.

    Returns
    -------
    y : array
        What `short_conv_nd` returns.
    pullback : callable
        ``pullback(dy)`` returns ``(du, dw, dbias)``, each of its argument's shape and dtype (None where the argument
        was None). None means zero.

    Raises
    ------
    ValueError, TypeError
        As in `short_conv_nd`; the pullback raises ValueError if `dy` has the wrong shape.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import short_conv_nd_vjp
    >>> y, pullback = short_conv_nd_vjp(np.ones((2, 2, 1)), np.ones((3, 3, 1, 1)))
    >>> pullback(np.ones((2, 2, 1)))[1][..., 0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    # y[to] += u[at] w[tap] for every tap, so du[at] += dy[to] w[tap]ᴴ and dw[tap] = Σ u[at]ᴴ dy[to] over all cells.
    who, given = "short_conv_nd_vjp", (u, w, bias)
    y = short_conv_nd(u, w, bias)
    xp, u, w, bias, _ = _prepare(who, u, w, bias)

    def pullback(dy: Array | None) -> tuple[Array, Array, Array | None]:
        dy = _arrays.cotangent(who, "dy", dy, y).astype(u.dtype, copy=False)
        du, dw = xp.zeros(u.shape, u.dtype), xp.zeros(w.shape, u.dtype)
        for tap, to, at in _overlaps(u.shape, w.shape):
            du[at] += xp.matmul(dy[to], xp.conj(w[tap]).T)
            cells = dy[to].size // max(1, dy.shape[-1]) if dy.shape[-1] else 0
            dw[tap] = xp.conj(u[at].reshape(cells, u.shape[-1])).T @ dy[to].reshape(cells, dy.shape[-1])
        grads = du, dw, None if bias is None else dy.sum(tuple(range(dy.ndim - 1)))
        like = [None if x is None else _arrays.grad_like(g, x) for g, x in zip(grads, given, strict=True)]
        return like[0], like[1], like[2]

    return y, pullback


def _prepare(who: str, u: Any, w: Any, bias: Any) -> tuple[Any, ...]:
    """All arguments in the dtype of the arithmetic, and the result's."""
    xp, u, w, bias = _arrays.take(who, u=u, w=w, bias=bias)
    dtype = _arrays.result_dtype(who, u=u, w=w, bias=bias)
    u, w, bias = (None if x is None else xp.asarray(x, _arrays.accum_dtype(dtype)) for x in (u, w, bias))
    if w.ndim < 3 or u.ndim < w.ndim - 1 or u.shape[-1] != w.shape[-2]:
        raise ValueError(f"{who}: u must have shape (…, X, Y, D) and w (K, …, D, P); got {u.shape} and {w.shape}")
    if bias is not None:
        bias = _arrays.broadcast_to(who, "bias", bias, w.shape[-1:])
    return xp, u, w, bias, dtype


def _overlaps(shape: tuple[int, ...], taps: tuple[int, ...]) -> Iterator[tuple[Any, Any, Any]]:
    """Each tap, the cells it adds to, and the cells it reads there."""
    counts, lengths = taps[:-2], shape[-len(taps) + 1 : -1]
    for tap in product(*map(range, counts)):
        moves = [k // 2 - j for j, k in zip(tap, counts, strict=True)]
        if all(abs(m) < n for m, n in zip(moves, lengths, strict=True)):
            to = [slice(max(0, -m), n - max(0, m)) for m, n in zip(moves, lengths, strict=True)]
            at = [slice(max(0, m), n - max(0, -m)) for m, n in zip(moves, lengths, strict=True)]
            yield tap, (..., *to, slice(None)), (..., *at, slice(None))
