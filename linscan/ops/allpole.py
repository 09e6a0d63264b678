"""All-pole filters whose coefficients change at every sample: ``allpole``."""

from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick


def allpole(
    a: Array, x: Array, zi: Array | None = None, axis: int = -1, *, workers: int | None = None
) -> Array | tuple[Array, Array]:
    r"""Time-varying all-pole filter ``y[t] = x[t] - a[t, 0] y[t-1] - … - a[t, K-1] y[t-K]`` along one axis.

    Parameters
    ----------
    a : array_like
        Coefficients (…, K): the last axis is the lag 1 … K, the axes before it broadcast against `x`. A filter that
        does not change is (K,), the ``a[1:]`` of `linscan.lfilter`.
    x : array_like
        The excitation, real or complex.
    zi : array_like, optional
        The K outputs before the first one, the newest first: ``zi[..., k] = y[-1-k]``. The shape of the result without
        `axis` and with K as its last axis, or broadcastable to it. None means zero.
    axis : int, default -1
        The axis of the result (`x` broadcast against the leading axes of `a`) that is time.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    y : array
        The filtered signal.
    zf : array
        Only if `zi` is given: the last K outputs, newest first, the `zi` of the samples that follow.

    Raises
    ------
    ValueError
        If the shapes do not broadcast.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    linscan.lfilter : constant coefficients, poles and zeros.
    linscan.scan : one lag, ``a[t] = -a[t, 0]``, much faster.
    linscan.allpole_vjp : the gradient.

    Notes
    -----
    O(T K) operations. The state is the outputs themselves (a direct form), so it keeps its meaning while the
    coefficients change. The result dtype is the promoted dtype of all three; float16 and bfloat16 are storage around
    float32 arithmetic. On the CPU, filtering in pieces and carrying `zf` gives the bits of one call.

    References
    ----------
    .. [1] C.-Y. Yu, C. Mitcheltree, A. Carson, S. Bilbao, J. D. Reiss, G. Fazekas, "Differentiable all-pole filters for
       time-varying audio systems", 2024, arXiv:2404.07970.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import allpole
    >>> a = np.array([[-0.5], [-0.5], [0.0]])
    >>> allpole(a, np.ones(3))
    array([1. , 1.5, 1. ])
    >>> allpole(a[2:], np.ones(1), zi=np.array([1.5]))
    (array([1.]), array([1.]))
    """
    a, x, start, axis, dtype = _prepare("allpole", a, x, zi, axis)
    y = pick("allpole", dtype, x)(a, x, start, axis=axis, workers=workers)
    zf = None if zi is None else _last(start, y, axis).astype(dtype)
    y = y.astype(dtype, copy=False)
    return y if zi is None else (y, zf)


def _prepare(who: str, a: Any, x: Any, zi: Any, axis: int) -> tuple[Any, ...]:
    """Coefficients, excitation and state (rows, K) broadcast to each other, in the dtype of the work."""
    xp, a, x, zi = _arrays.take(who, a=a, x=x, zi=zi)
    dtype = _arrays.result_dtype(who, a=a, x=x, zi=zi)
    compute = _arrays.accum_dtype(dtype)
    a, x = xp.atleast_1d(xp.asarray(a, compute)), xp.asarray(x, compute)
    taps = a.shape[-1]
    shape = _arrays.broadcast_shapes(who, a_without_lags=a.shape[:-1], x=x.shape)
    axis = _arrays.check_axis(who, axis, len(shape))
    a, x = xp.broadcast_to(a, (*shape, taps)), xp.broadcast_to(x, shape)
    zi = xp.asarray(0 if zi is None else zi, compute)
    return a, x, _arrays.broadcast_to(who, "zi", zi, (*shape[:axis], *shape[axis + 1 :], taps)), axis, dtype


def _last(zi: Array, y: Array, axis: int) -> Array:
    """The last K outputs, newest first, of an output that continues `zi`."""
    return _outputs(zi, y, axis)[..., y.shape[axis] :][..., ::-1]


def _outputs(zi: Array, y: Array, axis: int) -> Array:
    """All known outputs with time last: `zi` from its oldest on, then `y`."""
    xp = _arrays.namespace(y)
    return xp.concatenate([zi[..., ::-1], xp.moveaxis(y, axis, -1)], axis=-1)


def allpole_vjp(
    a: Array, x: Array, zi: Array | None = None, axis: int = -1, *, workers: int | None = None
) -> tuple[Any, Callable[..., tuple[Array, Array, Array | None]]]:
    """`allpole` and its pullback.

    Parameters
    ----------
    a, x, zi, axis, workers
        As in `allpole`.

    Returns
    -------
    y or (y, zf)
        What `allpole` returns.
    pullback : callable
        ``pullback(dy)``, or ``pullback(dy, dzf)`` if `zi` was given, returns ``(da, dx, dzi)``, each of its argument's
        shape and dtype (None where the argument was None). A cotangent of None means zero.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `allpole`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    linscan.allpole : the filter.

    Notes
    -----
    One all-pole filter backwards in time and one product per coefficient: O(T K), retaining `a` and `y`.

    References
    ----------
    .. [1] C.-Y. Yu, C. Mitcheltree, A. Carson, S. Bilbao, J. D. Reiss, G. Fazekas, "Differentiable all-pole filters for
       time-varying audio systems", 2024, arXiv:2404.07970.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import allpole_vjp
    >>> y, pullback = allpole_vjp(np.array([-0.5]), np.array([1.0, 0.0, 2.0]))
    >>> da, dx, dzi = pullback(np.array([0.0, 0.0, 1.0]))
    >>> dx
    array([0.25, 0.5 , 1.  ])
    """
    # With w[t] = ∂L/∂x[t] and lags k = 1 … K,
    #   w[t]    = dy[t] - sum_k conj(a[t+k, k]) w[t+k]   since y[t] enters y[t+k] through a[t+k, k]: an all-pole filter
    #   backwards; da[t,k] = -w[t] conj(y[t-k]),   dx = w,
    # and y[-k], which is zi, gets -sum_t conj(a[t, k+t]) w[t] in the same way. zf[k] is y[T-1-k], or zi where T is
    # short.
    given = _arrays.take("allpole_vjp", a=a, x=x, zi=zi)[1:]
    a, x, start, axis, dtype = _prepare("allpole_vjp", a, x, zi, axis)
    xp, run, T, taps = _arrays.namespace(x), pick("allpole", dtype, x), x.shape[axis], a.shape[-1]
    y = run(a, x, start, axis=axis, workers=workers)
    known = _outputs(start, y, axis)
    out, zf = y.astype(dtype, copy=False), _last(start, y, axis).astype(dtype)
    slopes = xp.moveaxis(a, axis, -2).conj()  # (rows, T, K)

    def pullback(dy: Array | None, dzf: Array | None = None) -> tuple[Array, Array, Array | None]:
        dy, dzf = _arrays.cotangent("allpole_vjp", "dy", dy, out), _arrays.cotangent("allpole_vjp", "dzf", dzf, zf)
        flow = xp.concatenate([xp.zeros(start.shape, x.dtype), xp.moveaxis(dy, axis, -1).astype(x.dtype)], axis=-1)
        flow[..., T:] += dzf[..., ::-1]
        later = xp.zeros(slopes.shape, x.dtype)  # later[t, k] is the path from y[t] to y[t + k + 1]
        for k in range(min(taps, T - 1)):
            later[..., : T - k - 1, k] = slopes[..., k + 1 :, k]
        zero = xp.zeros(start.shape, x.dtype)
        w = run(later[..., ::-1, :], flow[..., taps:][..., ::-1], zero, axis=x.ndim - 1, workers=workers)[..., ::-1]
        da = xp.empty(slopes.shape, x.dtype)
        for k in range(taps):
            first = taps - k - 1  # the lag k + 1 of the first output
            da[..., k] = -known[..., first : first + T].conj() * w
            n = min(k + 1, T)  # outputs that look back beyond the start
            flow[..., first : first + n] -= slopes[..., :n, k] * w[..., :n]
        grads = xp.moveaxis(da, -2, axis), xp.moveaxis(w, -1, axis), flow[..., :taps][..., ::-1]
        like = tuple(map(_arrays.grad_like, grads, given))
        return like[0], like[1], like[2]

    return (out if zi is None else (out, zf)), pullback
