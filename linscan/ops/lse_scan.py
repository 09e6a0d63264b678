"""Running sums of exponentials, kept as logarithms: ``h[t] = log(exp(a[t] + h[t-1]) + exp(b[t]))``."""

from collections.abc import Callable

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.in_kind import in_kind
from linscan.engines.reference.semiring_scan import logaddexp, weights
from linscan.ops import log_space


@in_kind
def lse_scan(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> Array:
    r"""Recurrence ``h[t] = log(exp(a[t] + h[t-1]) + exp(b[t]))`` along one axis: `scan`, in logarithms.

    Parameters
    ----------
    a, b : array_like
        Logarithms of decay and input, real. They broadcast against each other; the common shape is the result's.
    h0 : array_like, optional
        State before the first step (after the last one if `reverse`), broadcastable to the result's shape without
        `axis`. None means minus infinity, the logarithm of zero.
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
    linscan.lse_scan_step : one step of the same recurrence.
    linscan.lse_scan_vjp : the gradient.
    linscan.max_scan : the same with a maximum, its limit for large numbers.
    linscan.softmax_average : averages with these sums as their normaliser.

    Notes
    -----
    Nothing overflows: on the CPU the running maximum of what the sum is made of is taken out first, and all exponents
    are at most 0. ``b = -inf`` adds nothing and ``a = -inf`` forgets; a state to which nothing was added is ``-inf``,
    without NaN. ``+inf`` stays until it is forgotten by a reset (``-inf + inf`` is NaN). With float16 or bfloat16 the
    state is carried in float32. O(T).

    References
    ----------
    .. [1] G. E. Blelloch, "Prefix sums and their applications", CMU-CS-90-190, 1990.

    Examples
    --------
    Scores beyond what an exponential can hold:

    >>> import numpy as np
    >>> from linscan import lse_scan
    >>> lse_scan(0.0, np.array([1e4, 1e4, -np.inf])) - 1e4
    array([0.        , 0.69314718, 0.69314718])
    """
    a, b, h0, reset, axis, dtype = log_space.prepare("lse_scan", a, b, h0, reset, axis)
    return pick("lse_scan", dtype, b)(a, b, h0, axis=axis, reverse=bool(reverse), reset=reset, workers=workers)


def lse_scan_step(a: Array, b: Array, h: Array) -> Array:
    """One step of `lse_scan`: ``log(exp(a + h) + exp(b))``.

    Parameters
    ----------
    a, b : array_like
        Logarithms of decay and input of this step.
    h : array_like
        The state before it; all three broadcast.

    Returns
    -------
    h : array
        The state after it, a new array.

    Raises
    ------
    ValueError, TypeError
        As in `lse_scan`.

    See Also
    --------
    linscan.lse_scan : all steps at once.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import lse_scan_step
    >>> lse_scan_step(0.0, np.array([-np.inf, 2.0]), -np.inf)
    array([-inf,   2.])
    """
    xp, a, b, h = _arrays.take("lse_scan_step", a=a, b=b, h=h)
    dtype = _arrays.result_dtype("lse_scan_step", a=a, b=b, h=h)
    log_space.check_real("lse_scan_step", dtype)
    a, b, h = (xp.asarray(x, _arrays.accum_dtype(dtype)) for x in (a, b, h))
    _arrays.broadcast_shapes("lse_scan_step", a=a.shape, b=b.shape, h=h.shape)
    return logaddexp(a + h, b).astype(dtype, copy=False)


@in_kind
def lse_scan_vjp(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array, Array | None]]]:
    """`lse_scan` and its pullback.

    Parameters
    ----------
    a, b, h0, axis, reverse, reset, workers
        As in `lse_scan`.

    Returns
    -------
    h : array
        What `lse_scan` returns.
    pullback : callable
        ``pullback(dh)`` returns ``(da, db, dh0)``, each of its argument's shape and dtype (None where the argument
        was None). `dh` has the shape of `h`; None means zero.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `lse_scan`; the pullback raises ValueError if `dh` has the wrong shape.

    See Also
    --------
    linscan.lse_scan : the recurrence.

    Notes
    -----
    One scan in the opposite direction, retaining `a`, `b`, `h` and `h0`. Where a state is ``-inf`` nothing depends on
    its arguments smoothly; their gradients are 0 there.

    Examples
    --------
    The gradient of a log-sum-exp is a softmax:

    >>> import numpy as np
    >>> from linscan import lse_scan_vjp
    >>> h, pullback = lse_scan_vjp(0.0, np.log([1.0, 2.0, 1.0]))
    >>> pullback(np.array([0.0, 0.0, 1.0]))[1]
    array([0.25, 0.5 , 0.25])
    """
    # With p[t] = exp(a[t] + h[t-1] - h[t]) and q[t] = exp(b[t] - h[t]), which add up to 1,
    #   δ[t]  = dh[t] + p[t+1] δ[t+1]         because h[t] reaches L through dh[t] and through h[t+1];
    #   da[t] = p[t] δ[t],   db[t] = q[t] δ[t],   dh0 = p[0] δ[0].
    # A reset at t makes p[t] zero. p and q come from a + h[t-1] - b, not from h[t]: their sum stays 1 if h is rounded.
    given = _arrays.take("lse_scan_vjp", a=a, b=b, h0=h0)[1:]
    a, b, h0, reset, axis, dtype = log_space.prepare("lse_scan_vjp", a, b, h0, reset, axis)
    reverse = bool(reverse)
    h = pick("lse_scan", dtype, b)(a, b, h0, axis=axis, reverse=reverse, reset=reset, workers=workers)

    def pullback(dh: Array | None) -> tuple[Array, Array, Array | None]:
        dh = _arrays.cotangent("lse_scan_vjp", "dh", dh, h)
        carried = log_space.carried(a, h, h0, reset, axis, reverse)
        p, q = weights(carried, b.astype(carried.dtype, copy=False))
        delta = log_space.backwards(p, dh, axis, reverse, workers)
        da, db = p * delta, q * delta
        grads = da, db, log_space.first(da, axis, reverse)
        like = tuple(map(_arrays.grad_like, grads, given))
        return like[0], like[1], like[2]

    return h, pullback
