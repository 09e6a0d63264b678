"""First-order linear recurrences: ``h[t] = a[t] h[t-1] + b[t]``."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.in_kind import in_kind


@in_kind
def scan(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    reset: Array | None = None,
    out: Array | None = None,
    workers: int | None = None,
) -> Array:
    r"""First-order linear recurrence ``h[t] = a[t] h[t-1] + b[t]`` with ``h[-1] = h0``, along one axis.

    Parameters
    ----------
    a, b : array_like
        Decay and input. They broadcast against each other; the common shape is the result's. Real or complex.
    h0 : array_like, optional
        State before the first step (after the last one if `reverse`), broadcastable to the result's shape without
        `axis`. None means zero.
    axis : int, default -1
        The axis of the broadcast shape that is time.
    reverse : bool, default False
        Run backwards: ``h[t] = a[t] h[t+1] + b[t]`` with ``h[T] = h0``.
    reset : array_like of bool, optional
        Where true, the state is forgotten before that step: ``h[t] = b[t]`` exactly, whatever came before (NaN and
        inf included). Broadcastable to the result's shape. Several sequences can so be packed into one.
    out : array, optional
        Where to write the result; it must have the result's shape and dtype. It may be `a` or `b` itself.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    h : array
        All states, of the broadcast shape of `a` and `b`, C-contiguous unless `out` is given. The final state is the
        last one along `axis` (the first if `reverse`), and is the `h0` that continues the recurrence.

    Raises
    ------
    ValueError
        If the shapes do not broadcast, or `out` does not fit.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    scan_step : one step of the same recurrence.
    scan_vjp : the gradient.

    Notes
    -----
    O(T) operations and no temporary of the size of the result. The result dtype is the promoted dtype of `a`, `b`
    and `h0`; float16 and bfloat16 are storage, and the state is then carried in float32. A row's bits do not depend on
    the other rows or on `workers`. The rounding error of ``h[t]`` is at most
    ``eps * sum_s |a[t] ... a[s+1]| (t - s + 1) |b[s]|`` to first order, as for the plain loop.

    References
    ----------
    .. [1] G. E. Blelloch, "Prefix sums and their applications", CMU-CS-90-190, 1990.
    .. [2] E. Martin and C. Cundy, "Parallelizing linear recurrent neural nets over sequence length", 2018,
       arXiv:1709.04057.

    Examples
    --------
    A leaky integrator, and the same in two pieces:

    >>> import numpy as np
    >>> from linscan import scan
    >>> u = np.array([1.0, 0.0, 0.0, 2.0])
    >>> scan(0.5, u)
    array([1.   , 0.5  , 0.25 , 2.125])
    >>> first = scan(0.5, u[:2])
    >>> scan(0.5, u[2:], h0=first[-1])
    array([0.25 , 2.125])
    """
    a, b, h0, reset, axis, dtype = prepare("scan", a, b, h0, reset, axis)
    if out is not None:
        _arrays.check_out("scan", out, b.shape, dtype, _arrays.namespace(b))
    run = pick("scan", dtype, b)
    return run(a, b, h0, axis=axis, reverse=bool(reverse), reset=reset, out=out, workers=workers)


def prepare(who: str, a: Any, b: Any, h0: Any, reset: Any, axis: int) -> tuple[Any, ...]:
    """All arguments as arrays of one dtype, broadcast (without a copy) to the result's shape; axis as an index."""
    common = _arrays.plain(a, b) if h0 is None and reset is None else None
    if common is not None:  # nothing to convert: the common case pays for no checks
        xp, dtype = common
    else:
        xp, a, b, h0, reset = _arrays.take(who, a=a, b=b, h0=h0, reset=reset)
        dtype = _arrays.result_dtype(who, a=a, b=b, h0=h0)
        a, b = _arrays.cast(xp, a, dtype), _arrays.cast(xp, b, dtype)
    shape = a.shape
    if b.shape != shape:
        shape = _arrays.broadcast_shapes(who, a=shape, b=b.shape)
        a, b = (x if x.shape == shape else xp.broadcast_to(x, shape) for x in (a, b))
    axis = _arrays.check_axis(who, axis, len(shape))
    if h0 is not None:
        h0 = _arrays.broadcast_to(who, "h0", xp.asarray(h0, dtype), shape[:axis] + shape[axis + 1 :])
    if reset is not None:
        reset = xp.asarray(reset)
        if reset.dtype.kind not in "biu":
            raise TypeError(f"{who}: reset must be boolean; got {reset.dtype}")
        reset = _arrays.broadcast_to(who, "reset", reset.astype(bool, copy=False), shape)
    return a, b, h0, reset, axis, dtype


def scan_step(a: Array, b: Array, h: Array) -> Array:
    """One step of `scan`: ``a h + b``.

    Parameters
    ----------
    a, b : array_like
        Decay and input of this step.
    h : array_like
        The state before it; all three broadcast.

    Returns
    -------
    h : array
        The state after it, a new array.

    Raises
    ------
    ValueError
        If the shapes do not broadcast.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.

    See Also
    --------
    scan : all steps at once.

    Notes
    -----
    Two array operations and one allocation; with float16 or bfloat16 the arithmetic is float32.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import scan_step
    >>> h = np.zeros(2)
    >>> for u in (np.array([1.0, 2.0]), np.array([0.0, 4.0])):
    ...     h = scan_step(0.5, u, h)
    >>> h
    array([0.5, 5. ])
    """
    if type(a) is type(b) is type(h) is np.ndarray and a.dtype is b.dtype is h.dtype and a.dtype.char in "fdFD":
        xp, dtype = np, None  # nothing to convert: the common case pays for no checks
    else:
        xp, a, b, h = _arrays.take("scan_step", a=a, b=b, h=h)
        dtype = _arrays.result_dtype("scan_step", a=a, b=b, h=h)
        a, b, h = (xp.asarray(x, _arrays.accum_dtype(dtype)) for x in (a, b, h))
    if not a.shape == b.shape == h.shape:
        shape = _arrays.broadcast_shapes("scan_step", a=a.shape, b=b.shape, h=h.shape)
        a = xp.broadcast_to(a, shape)
    new = xp.asarray(xp.multiply(a, h))  # NumPy turns a product without axes into a scalar, which add could not fill
    xp.add(new, b, out=new)
    return new if dtype is None else new.astype(dtype, copy=False)


@in_kind
def scan_vjp(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array, Array | None]]]:
    """`scan` and its pullback.

    Parameters
    ----------
    a, b, h0, axis, reverse, reset, workers
        As in `scan`.

    Returns
    -------
    h : array
        What `scan` returns.
    pullback : callable
        ``pullback(dh)`` returns ``(da, db, dh0)``, each of its argument's shape and dtype (None where the argument
        was None). `dh` has the shape of `h`; None means zero. The final state is part of `h`: add its cotangent there.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `scan`; the pullback raises ValueError if `dh` has the wrong shape.

    See Also
    --------
    scan : the recurrence.

    Notes
    -----
    The pullback is one scan in the opposite direction that writes both gradients: O(T) time, retaining `a`, `h` and
    `h0`. Complex cotangents are ``∂L/∂Re + i ∂L/∂Im``.

    References
    ----------
    .. [1] E. Martin and C. Cundy, "Parallelizing linear recurrent neural nets over sequence length", 2018,
       arXiv:1709.04057.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import scan_vjp
    >>> h, pullback = scan_vjp(0.5, np.array([1.0, 0.0, 2.0]))
    >>> da, db, dh0 = pullback(np.array([0.0, 0.0, 1.0]))
    >>> db
    array([0.25, 0.5 , 1.  ])
    """
    # With δ[t] = ∂L/∂h[t] taken over every path,
    #   δ[t]  = dh[t] + conj(a[t+1]) δ[t+1]   because h[t] reaches L through dh[t] and through h[t+1];
    #   db[t] = δ[t],   da[t] = conj(h[t-1]) δ[t],   dh0 = conj(a[0]) δ[0].
    # A reset at t replaces a[t] by 0: nothing flows back over it, and da[t] = 0.
    given = a, b, h0
    a, b, h0, reset, axis, dtype = prepare("scan_vjp", a, b, h0, reset, axis)
    options = {"axis": axis, "reverse": bool(reverse), "reset": reset, "workers": workers}
    h = pick("scan", dtype, b)(a, b, h0, out=None, **options)
    run = pick("scan_pullback", dtype, b)
    if _arrays.repeats(a, given[0], axis):
        a = a.copy()  # an engine may sum the gradient of an `a` over times that it has one number for

    def pullback(dh: Array | None) -> tuple[Array, Array, Array | None]:
        dh = _arrays.cotangent("scan_vjp", "dh", dh, h)
        da, db, dh0 = run(a, h, h0, dh, **options)
        like = tuple(map(_arrays.grad_like, (da, db, dh0), given))
        return like[0], like[1], like[2]

    return h, pullback
