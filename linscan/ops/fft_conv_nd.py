"""Long convolutions over several axes at once, such as images or video."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import check_workers, pick
from linscan.ops.conv_window import MODES


def fft_conv_nd(
    u: Array,
    k: Array,
    axes: Sequence[int] = (-2, -1),
    mode: str | Sequence[str] = "causal",
    *,
    workers: int | None = None,
) -> Array:
    r"""Convolution over several axes, ``y[t] = Σ_j k[j] u[t - j]`` with t and j tuples of indices, by FFT.

    Parameters
    ----------
    u, k : array_like
        Signal and kernel of the same number of axes; those not in `axes` broadcast. Real or complex.
    axes : sequence of int, default (-2, -1)
        The axes to convolve over.
    mode : {"causal", "bidirectional", "circular"} or one of them for each of `axes`
        As in `fft_conv`: causal looks back along the axis, bidirectional has lag 0 at the kernel's index ``K // 2``,
        circular takes the signal as periodic.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    y : array
        Of `u`'s lengths along `axes`, the other axes broadcast; C-contiguous, of the promoted dtype.

    Raises
    ------
    ValueError
        If the shapes do not broadcast, `axes` is empty or repeats one, or for an unknown `mode`.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.
    numpy.exceptions.AxisError
        If one of `axes` is out of range.

    See Also
    --------
    fft_conv : one axis, with state, blocks and a direct sum.

    Notes
    -----
    O(n log n) with n the product of signal plus kernel lengths; real transforms for real data. The error is of the
    order of ``eps ‖k‖ ‖u‖``, relative to the largest values. A NaN or inf reaches the outputs that the plain sum would
    give it to. A separable kernel (an outer product, as in S4ND) is cheaper as one `fft_conv` per axis.

    References
    ----------
    .. [1] E. Nguyen et al., "S4ND: modeling images and videos as multidimensional signals using state spaces", 2022,
       arXiv:2210.06583.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import fft_conv_nd
    >>> u = np.zeros((3, 3))
    >>> u[1, 1] = 1
    >>> fft_conv_nd(u, np.array([[1.0, 2.0], [3.0, 4.0]])).round(9) + 0.0
    array([[0., 0., 0.],
           [0., 1., 2.],
           [0., 3., 4.]])
    """
    return _run(_prepare("fft_conv_nd", u, k, axes, mode), workers)


class _Problem(NamedTuple):
    """Signal and kernel with the axes to convolve over last; `starts` is the index of lag 0 in each."""

    u: Array
    k: Array  # circular axes folded to the period
    starts: tuple[int, ...]
    circular: tuple[bool, ...]
    axes: tuple[int, ...]
    given: tuple[Array, Array]  # as they came, axes last


def _prepare(who: str, u: Any, k: Any, axes: Sequence[int], mode: str | Sequence[str]) -> _Problem:
    xp, u, k = _arrays.take(who, u=u, k=k)
    dtype = _arrays.result_dtype(who, u=u, k=k)
    u, k = xp.asarray(u), xp.asarray(k)
    if u.ndim != k.ndim:
        raise ValueError(f"{who}: u and k must have the same number of axes; got shapes {u.shape} and {k.shape}")
    axes = tuple(_arrays.check_axis(who, axis, u.ndim, "axes") for axis in axes)
    if not axes or len(set(axes)) != len(axes):
        raise ValueError(f"{who}: axes must be different and at least one; got {axes}")
    modes = (mode,) * len(axes) if isinstance(mode, str) else tuple(mode)
    if len(modes) != len(axes):
        raise ValueError(f"{who}: mode must be one string or one for each of {len(axes)} axes; got {len(modes)}")
    for name in modes:
        _arrays.check_choice(who, "mode", name, MODES)
    last = tuple(range(-len(axes), 0))
    given = u, k = xp.moveaxis(u, axes, last), xp.moveaxis(k, axes, last)
    _arrays.broadcast_shapes(who, u=u.shape[: -len(axes)], k=k.shape[: -len(axes)])
    u, k = u.astype(dtype, copy=False), k.astype(dtype, copy=False)
    circular = tuple(name == "circular" for name in modes)
    starts = tuple(k.shape[i] // 2 if name == "bidirectional" else 0 for i, name in zip(last, modes, strict=True))
    for i, wraps in zip(last, circular, strict=True):
        k = _fold(k, i, u.shape[i]) if wraps else k
    return _Problem(u, k, starts, circular, axes, given)


def _fold(k: Array, axis: int, period: int) -> Array:
    """The kernel with taps a period apart along `axis` added up, and zeros up to the period."""
    xp, k = _arrays.namespace(k), _arrays.namespace(k).moveaxis(k, axis, -1)
    if period == 0:
        return xp.moveaxis(k[..., :0], -1, axis)
    rounds = -(-max(k.shape[-1], 1) // period)
    padded = xp.zeros((*k.shape[:-1], rounds * period), k.dtype)
    padded[..., : k.shape[-1]] = k
    return xp.moveaxis(padded.reshape(*k.shape[:-1], rounds, period).sum(-2), -1, axis)


def _run(p: _Problem, workers: int | None) -> Array:
    check_workers("fft_conv_nd", workers)  # nothing runs where nothing is to be done
    xp, dims = _arrays.namespace(p.u), len(p.axes)
    y = _window(p, p.u, p.k, p.u.shape[-dims:], p.starts, workers)
    return xp.ascontiguousarray(xp.moveaxis(y, range(-dims, 0), p.axes))


def _window(p: _Problem, u: Array, k: Array, shape: tuple, starts: tuple, workers: int | None) -> Array:
    xp, dims = _arrays.namespace(u), len(p.axes)
    lead = np.broadcast_shapes(u.shape[:-dims], k.shape[:-dims])
    if u.size == 0 or k.size == 0 or 0 in shape or 0 in lead:
        return xp.zeros((*lead, *shape), u.dtype)
    run = pick("fft_conv_nd", u.dtype, u)
    return run(u, k, shape, starts=starts, circular=p.circular, workers=workers)


def fft_conv_nd_vjp(
    u: Array,
    k: Array,
    axes: Sequence[int] = (-2, -1),
    mode: str | Sequence[str] = "causal",
    *,
    workers: int | None = None,
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array]]]:
    """`fft_conv_nd` and its pullback.

    Parameters
    ----------
    u, k, axes, mode, workers
        As in `fft_conv_nd`.

    Returns
    -------
    y : array
        What `fft_conv_nd` returns.
    pullback : callable
        ``pullback(dy)`` returns ``(du, dk)``, each of its argument's shape and dtype. None means zero.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `fft_conv_nd`; the pullback raises ValueError if `dy` has the wrong shape.

    See Also
    --------
    fft_conv_nd : the convolution.

    Notes
    -----
    Two correlations, each by three transforms. Retains `u` and `k`. Complex cotangents are ``∂L/∂Re + i ∂L/∂Im``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import fft_conv_nd_vjp
    >>> y, pullback = fft_conv_nd_vjp(np.ones((2, 2)), np.array([[2.0, 1.0]]))
    >>> du, dk = pullback(np.ones((2, 2)))
    >>> dk.round(9)
    array([[4., 2.]])
    """
    # As for fft_conv, along every axis: du is the window of dy * reversed conj(k) that starts at K - 1 - start, and dk
    # the window of dy * reversed conj(u) that starts at T - 1 - start; where circular, reversed means j -> -j.
    p = _prepare("fft_conv_nd_vjp", u, k, axes, mode)
    y = _run(p, workers)

    def pullback(dy: Array | None) -> tuple[Array, Array]:
        xp, last = _arrays.namespace(y), range(-len(p.axes), 0)
        g = xp.moveaxis(_arrays.cotangent("fft_conv_nd_vjp", "dy", dy, y), p.axes, last)
        du = _against(p, g, p.k, p.u.shape, workers)
        dk = _unfold(p, _against(p, g, p.u, p.k.shape, workers))
        du, dk = (_arrays.grad_like(x, like) for x, like in zip((du, dk), p.given, strict=True))
        return xp.moveaxis(du, last, p.axes), xp.moveaxis(dk, last, p.axes)

    return y, pullback


def _against(p: _Problem, g: Array, factor: Array, shape: tuple[int, ...], workers: int | None) -> Array:
    """The correlation of the cotangent with one factor of the convolution: the gradient of the other, of `shape`."""
    xp, dims, starts = _arrays.namespace(g), len(p.axes), []
    turned = xp.conj(factor)
    for i, start, wraps in zip(range(-dims, 0), p.starts, p.circular, strict=True):
        turned = xp.roll(xp.flip(turned, i), 1, i) if wraps else xp.flip(turned, i)
        short = max(0, start + 1 - turned.shape[i])  # a kernel whose lag 0 lies beyond the signal's length
        if short and not wraps:
            before = [(short, 0) if axis == i % turned.ndim else (0, 0) for axis in range(turned.ndim)]
            turned = xp.pad(turned, before)
        starts.append(0 if wraps else turned.shape[i] - 1 - start)
    return _window(p, g, turned, shape[-dims:], tuple(starts), workers)


def _unfold(p: _Problem, dk: Array) -> Array:
    """The gradient of the kernel as given: taps that were folded together get the same."""
    xp, dims = _arrays.namespace(dk), len(p.axes)
    for i, wraps in zip(range(-dims, 0), p.circular, strict=True):
        if wraps:
            period, width = max(p.u.shape[i], 1), p.given[1].shape[i]
            dk = xp.take(dk, xp.arange(width) % period, axis=i) if dk.shape[i] else xp.zeros(p.given[1].shape, dk.dtype)
    return dk
