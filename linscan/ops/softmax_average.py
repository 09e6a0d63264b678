"""Averages weighted by a softmax over the past, one pass, no overflow: attention with a state of fixed size."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.reference.semiring_scan import logaddexp, share, weights
from linscan.ops import log_space


def softmax_average(
    s: Array,
    v: Array,
    w: Array = 0.0,
    z0: Array | None = None,
    y0: Array | None = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> tuple[Array, Array]:
    r"""Mean of the values so far, weighted by a softmax of their scores, which may decay.

    ``y[t] = sum_r exp(s[r] + w[r+1] + ... + w[t] - z[t]) v[r]`` over all r up to t, where `z` makes the weights add up
    to 1.

    Parameters
    ----------
    s : array_like
        Scores, real.
    v : array_like
        Values, real. All three broadcast; the common shape is that of the means. A score for a whole vector of values
        has size 1 along its axis.
    w : array_like, default 0
        Logarithm of the decay of all earlier weights at each step.
    z0, y0 : array_like, optional
        State before the first step (after the last one if `reverse`): the logarithm of the sum of weights, of the
        shape of `z` without `axis`, and the mean, of that of `y`. None means minus infinity, that nothing is there yet,
        and zero.
    axis : int, default -1
        The axis of the broadcast shape that is time.
    reverse : bool, default False
        Average over the times from t on.
    reset : array_like of bool, optional
        Where true, everything is forgotten before that step, NaN and inf included. Broadcastable to the shape of `z`.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    y : array
        The means, of the broadcast shape.
    z : array
        Logarithms of the sums of weights, ``lse_scan(w, s)``: of the broadcast shape of `s` and `w`, with as many axes
        as `y`. The last of both along `axis` (the first if `reverse`) are the `y0` and `z0` that continue.

    Raises
    ------
    ValueError
        If the shapes do not broadcast.
    TypeError
        For an unsupported or complex dtype, or host and GPU arrays mixed.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    linscan.softmax_average_step : one step.
    linscan.softmax_average_vjp : the gradient.
    linscan.lse_scan : the normaliser alone.

    Notes
    -----
    ``y[t] = p y[t-1] + q v[t]`` with ``p = exp(z[t-1] + w[t] - z[t])`` and ``q = exp(s[t] - z[t])``, which are at most
    1 and add up to 1: a mean never leaves the range of its values, however large the scores. A score of ``-inf`` leaves
    a step out, even one whose value is not finite; a mean of nothing is 0 and its `z` is ``-inf``. One score of
    ``+inf`` takes all the weight from then on; two of them make NaN. A log-decay of ``+inf`` is none: means after it
    are not defined. With float16 or bfloat16 the state is carried in float32. O(T).

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867.
    .. [2] L. Feng et al., "Attention as an RNN", 2024, arXiv:2405.13956.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import softmax_average
    >>> y, z = softmax_average(np.array([1e4, 1e4, -1e4]), np.array([1.0, 2.0, 9.0]))
    >>> y
    array([1. , 1.5, 1.5])
    """
    s, v, w, z0, y0, reset, axis, dtype = _prepare("softmax_average", s, v, w, z0, y0, reset, axis)
    options = {"axis": axis, "reverse": bool(reverse), "reset": reset, "workers": workers}
    y, z = pick("softmax_average", dtype, v)(s, v, w, z0, y0, **options)
    return y, z


def _prepare(who: str, s: Any, v: Any, w: Any, z0: Any, y0: Any, reset: Any, axis: int) -> tuple[Any, ...]:
    """All arguments as arrays of one dtype, `v` and `y0` of the shape of the means, the others of that of the sums."""
    xp, s, v, w, z0, y0, reset = _arrays.take(who, s=s, v=v, w=w, z0=z0, y0=y0, reset=reset)
    dtype = _arrays.result_dtype(who, s=s, v=v, w=w, z0=z0, y0=y0)
    log_space.check_real(who, dtype)
    s, v, w = (xp.asarray(x, dtype) for x in (s, v, w))
    shape = _arrays.broadcast_shapes(who, s=s.shape, v=v.shape, w=w.shape)
    axis = _arrays.check_axis(who, axis, len(shape))
    narrow = np.broadcast_shapes(s.shape, w.shape)
    narrow = (1,) * (len(shape) - len(narrow)) + narrow
    narrow = (*narrow[:axis], shape[axis], *narrow[axis + 1 :])
    s, w = (x if x.shape == narrow else xp.broadcast_to(x, narrow) for x in (s, w))
    v = v if v.shape == shape else xp.broadcast_to(v, shape)
    if z0 is not None:
        z0 = _arrays.broadcast_to(who, "z0", xp.asarray(z0, dtype), narrow[:axis] + narrow[axis + 1 :])
    if y0 is not None:
        y0 = _arrays.broadcast_to(who, "y0", xp.asarray(y0, dtype), shape[:axis] + shape[axis + 1 :])
    if reset is not None:
        reset = xp.asarray(reset)
        if reset.dtype.kind not in "biu":
            raise TypeError(f"{who}: reset must be boolean; got {reset.dtype}")
        reset = _arrays.broadcast_to(who, "reset", reset.astype(bool, copy=False), narrow)
    return s, v, w, z0, y0, reset, axis, dtype


def softmax_average_step(s: Array, v: Array, w: Array, z: Array, y: Array) -> tuple[Array, Array]:
    """One step of `softmax_average`.

    Parameters
    ----------
    s, v, w : array_like
        Score, value and log-decay of this step.
    z, y : array_like
        The state before it: the logarithm of the sum of weights (``-inf`` to begin with) and the mean. All broadcast.

    Returns
    -------
    y : array
        The mean after it.
    z : array
        The logarithm of the sum of weights after it.

    Raises
    ------
    ValueError, TypeError
        As in `softmax_average`.

    See Also
    --------
    linscan.softmax_average : all steps at once.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import softmax_average_step
    >>> y, z = 0.0, -np.inf
    >>> for v in (1.0, 2.0, 6.0):
    ...     y, z = softmax_average_step(0.0, np.array([v]), 0.0, z, y)
    >>> y
    array([3.])
    """
    named = {"s": s, "v": v, "w": w, "z": z, "y": y}
    xp, *arrays = _arrays.take("softmax_average_step", **named)
    dtype = _arrays.result_dtype("softmax_average_step", **dict(zip(named, arrays, strict=True)))
    log_space.check_real("softmax_average_step", dtype)
    s, v, w, z, y = (xp.asarray(x, _arrays.accum_dtype(dtype)) for x in arrays)
    _arrays.broadcast_shapes("softmax_average_step", s=s.shape, v=v.shape, w=w.shape, z=z.shape, y=y.shape)
    p, q = weights(w + z, s)
    return (share(p, y) + share(q, v)).astype(dtype, copy=False), logaddexp(w + z, s).astype(dtype, copy=False)


def softmax_average_vjp(
    s: Array,
    v: Array,
    w: Array = 0.0,
    z0: Array | None = None,
    y0: Array | None = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> tuple[tuple[Array, Array], Callable[..., tuple[Any, ...]]]:
    """`softmax_average` and its pullback.

    Parameters
    ----------
    s, v, w, z0, y0, axis, reverse, reset, workers
        As in `softmax_average`.

    Returns
    -------
    y, z : tuple of arrays
        What `softmax_average` returns.
    pullback : callable
        ``pullback(dy, dz)`` returns ``(ds, dv, dw, dz0, dy0)``, each of its argument's shape and dtype (None where the
        argument was None). A cotangent of None means zero.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `softmax_average`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    linscan.softmax_average : the means.

    Notes
    -----
    Two scans in the opposite direction, retaining the arguments and both results.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import softmax_average_vjp
    >>> (y, z), pullback = softmax_average_vjp(np.zeros(4), np.arange(4.0))
    >>> pullback(np.array([0.0, 0.0, 0.0, 1.0]), None)[1]
    array([0.25, 0.25, 0.25, 0.25])
    """
    # A step maps x = w[t] + z[t-1], s[t], y[t-1] and v[t] to z[t] = logaddexp(x, s) and y[t] = p y[t-1] + q v[t], where
    # ∂z/∂x = p, ∂z/∂s = q and ∂y/∂x = -∂y/∂s = p q (y[t-1] - v[t]). With Y[t] and Z[t] the gradients of y[t] and z[t]
    # over every path and m[t] = p[t] q[t] (y[t-1] - v[t]) Y[t],
    #   Y[t]  = dy[t] + p[t+1] Y[t+1],   dv[t] = q[t] Y[t],   dy0 = p[0] Y[0];
    #   Z[t]  = dz[t] + dw[t+1],   dw[t] = p[t] Z[t] + m[t],   ds[t] = q[t] Z[t] - m[t],   dz0 = dw[0].
    given = _arrays.take("softmax_average_vjp", s=s, v=v, w=w, z0=z0, y0=y0)[1:]
    s, v, w, z0, y0, reset, axis, dtype = _prepare("softmax_average_vjp", s, v, w, z0, y0, reset, axis)
    reverse = bool(reverse)
    options = {"axis": axis, "reverse": reverse, "reset": reset, "workers": workers}
    y, z = pick("softmax_average", dtype, v)(s, v, w, z0, y0, **options)

    def pullback(dy: Array | None, dz: Array | None) -> tuple[Any, ...]:
        dy = _arrays.cotangent("softmax_average_vjp", "dy", dy, y)
        dz = _arrays.cotangent("softmax_average_vjp", "dz", dz, z)
        carried = log_space.carried(w, z, z0, reset, axis, reverse)
        p, q = weights(carried, s.astype(carried.dtype, copy=False))
        Y = log_space.backwards(p, dy, axis, reverse, workers)
        moved = share(p * q, log_space.before(y, y0, 0.0, axis, reverse) - v) * Y
        shared = tuple(i for i, n in enumerate(z.shape) if n != moved.shape[i])
        moved = moved.sum(axis=shared, keepdims=True) if shared else moved
        Z = log_space.backwards(p, dz + log_space.after(moved, axis, reverse), axis, reverse, workers)
        dw, last = p * Z + moved, p * Y
        grads = q * Z - moved, q * Y, dw, log_space.first(dw, axis, reverse), log_space.first(last, axis, reverse)
        return tuple(map(_arrays.grad_like, grads, given))

    return (y, z), pullback
