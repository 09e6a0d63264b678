"""Running maxima with a drift: ``h[t] = max(a[t] + h[t-1], b[t])``, the recurrence of the max-plus semiring."""

from collections.abc import Callable

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.in_kind import in_kind
from linscan.ops import log_space


@in_kind
def max_scan(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> Array:
    r"""Recurrence ``h[t] = max(a[t] + h[t-1], b[t])`` along one axis.

    Parameters
    ----------
    a, b : array_like
        Drift and input, real. They broadcast against each other; the common shape is the result's.
    h0 : array_like, optional
        State before the first step (after the last one if `reverse`), broadcastable to the result's shape without
        `axis`. None means minus infinity.
    axis : int, default -1
        The axis of the broadcast shape that is time.
    reverse : bool, default False
        Run backwards, from `h0` after the last step.
    reset : array_like of bool, optional
        Where true, the state is forgotten before that step: ``h[t] = b[t]`` exactly, whatever came before (NaN and
        inf included). Broadcastable to the result's shape.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    h : array
        All states, of the broadcast shape of `a` and `b`. The final state is the last one along `axis` (the first if
        `reverse`), and is the `h0` that continues the recurrence.

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
    linscan.max_scan_step : one step of the same recurrence.
    linscan.max_scan_vjp : the gradient.
    linscan.lse_scan : the same with a smooth maximum.

    Notes
    -----
    With a = 0 this is ``numpy.maximum.accumulate``. NaN stays until a reset. O(T), one rounding (of the sum) in every
    step; with float16 or bfloat16 the state is carried in float32.

    References
    ----------
    .. [1] F. Baccelli, G. Cohen, G. J. Olsder and J.-P. Quadrat, "Synchronization and Linearity", 1992.

    Examples
    --------
    A peak meter that falls by 1 in every step:

    >>> import numpy as np
    >>> from linscan import max_scan
    >>> max_scan(-1.0, np.array([0.0, 5.0, 1.0, 1.0, 3.5]))
    array([0. , 5. , 4. , 3. , 3.5])
    """
    a, b, h0, reset, axis, dtype = log_space.prepare("max_scan", a, b, h0, reset, axis)
    return pick("max_scan", dtype, b)(a, b, h0, axis=axis, reverse=bool(reverse), reset=reset, workers=workers)


def max_scan_step(a: Array, b: Array, h: Array) -> Array:
    """One step of `max_scan`: ``max(a + h, b)``.

    Parameters
    ----------
    a, b : array_like
        Drift and input of this step.
    h : array_like
        The state before it; all three broadcast.

    Returns
    -------
    h : array
        The state after it, a new array.

    Raises
    ------
    ValueError, TypeError
        As in `max_scan`.

    See Also
    --------
    linscan.max_scan : all steps at once.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import max_scan_step
    >>> max_scan_step(-1.0, np.array([0.0, 5.0]), 3.0)
    array([2., 5.])
    """
    xp, a, b, h = _arrays.take("max_scan_step", a=a, b=b, h=h)
    dtype = _arrays.result_dtype("max_scan_step", a=a, b=b, h=h)
    log_space.check_real("max_scan_step", dtype)
    a, b, h = (xp.asarray(x, _arrays.accum_dtype(dtype)) for x in (a, b, h))
    _arrays.broadcast_shapes("max_scan_step", a=a.shape, b=b.shape, h=h.shape)
    return xp.asarray(xp.maximum(a + h, b)).astype(dtype, copy=False)


@in_kind
def max_scan_vjp(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array, Array | None]]]:
    """`max_scan` and its pullback.

    Parameters
    ----------
    a, b, h0, axis, reverse, reset, workers
        As in `max_scan`.

    Returns
    -------
    h : array
        What `max_scan` returns.
    pullback : callable
        ``pullback(dh)`` returns ``(da, db, dh0)``, each of its argument's shape and dtype (None where the argument
        was None). `dh` has the shape of `h`; None means zero.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `max_scan`; the pullback raises ValueError if `dh` has the wrong shape.

    See Also
    --------
    linscan.max_scan : the recurrence.

    Notes
    -----
    A cotangent goes, undivided, to the argument that was larger; in a tie to the newer one, `b`. One scan in the
    opposite direction, retaining `a`, `b`, `h` and `h0`.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import max_scan_vjp
    >>> h, pullback = max_scan_vjp(0.0, np.array([1.0, 3.0, 3.0, 2.0]))
    >>> pullback(np.ones(4))[1]
    array([1., 1., 2., 0.])
    """
    # With p[t] = 1 where a[t] + h[t-1] > b[t], else 0,
    #   δ[t]  = dh[t] + p[t+1] δ[t+1]         because h[t] reaches L through dh[t] and through h[t+1];
    #   da[t] = p[t] δ[t],   db[t] = (1 - p[t]) δ[t],   dh0 = p[0] δ[0].
    given = _arrays.take("max_scan_vjp", a=a, b=b, h0=h0)[1:]
    a, b, h0, reset, axis, dtype = log_space.prepare("max_scan_vjp", a, b, h0, reset, axis)
    reverse = bool(reverse)
    h = pick("max_scan", dtype, b)(a, b, h0, axis=axis, reverse=reverse, reset=reset, workers=workers)

    def pullback(dh: Array | None) -> tuple[Array, Array, Array | None]:
        dh = _arrays.cotangent("max_scan_vjp", "dh", dh, h)
        carried = log_space.carried(a, h, h0, reset, axis, reverse)
        older = carried > b
        delta = log_space.backwards(older.astype(carried.dtype), dh, axis, reverse, workers)
        xp = _arrays.namespace(delta)
        da, db = xp.where(older, delta, 0), xp.where(older, 0, delta)
        grads = da, db, log_space.first(da, axis, reverse)
        like = tuple(map(_arrays.grad_like, grads, given))
        return like[0], like[1], like[2]

    return h, pullback
