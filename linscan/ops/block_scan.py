"""Linear recurrences with a small matrix at every step: ``h[t] = A[t] h[t-1] + b[t]``."""

from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.in_kind import in_kind


@in_kind
def block_scan(
    A: Array,
    b: Array,
    h0: Array | None = None,
    *,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> Array:
    r"""Linear recurrence ``h[t] = A[t] h[t-1] + b[t]`` of vectors of n numbers, with ``h[-1] = h0``.

    Parameters
    ----------
    A : array_like
        Transition matrices (…, T, n, n). One matrix for all steps is (…, 1, n, n) or (n, n). Real or complex.
    b : array_like
        Inputs (…, T, n). The leading axes and T broadcast against those of `A`; n does not.
    h0 : array_like, optional
        State before the first step (after the last one if `reverse`), broadcastable to (…, n). None means zero.
    reverse : bool, default False
        Run backwards: ``h[t] = A[t] h[t+1] + b[t]`` with ``h[T] = h0``.
    reset : array_like of bool, optional
        Where true, the state is forgotten before that step: ``h[t] = b[t]`` exactly, whatever came before (NaN and
        inf included). Broadcastable to (…, T). Several sequences can so be packed into one.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    h : array
        All states (…, T, n), C-contiguous. The final state is ``h[..., -1, :]`` (``h[..., 0, :]`` if `reverse`), and is
        the `h0` that continues the recurrence.

    Raises
    ------
    ValueError
        If the matrices are not square, or shapes do not fit.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.

    See Also
    --------
    linscan.block_step : one step of the same recurrence.
    linscan.block_scan_vjp : the gradient.
    linscan.scan : n = 1, and diagonal matrices.
    linscan.dlsim : one matrix for all steps, with inputs and outputs of other sizes.

    Notes
    -----
    O(T n²) operations and no temporary of the size of `A`; on the CPU n = 2, 3 and 4 keep the state in registers. The
    result dtype is the promoted dtype of all three; float16 and bfloat16 are storage, and the state is then carried in
    float32. A row's bits do not depend on the other rows or on `workers`. The rounding error of ``h[t]`` is at most
    ``(n + 1) eps sum_s |A[t] ... A[s+1]| (|A[s]| |h[s-1]| + |b[s]|)`` to first order, as for the plain loop: on
    the CPU matrices are never multiplied with each other, on the GPU only where no entry of a product exceeds 1024.

    References
    ----------
    .. [1] G. E. Blelloch, "Prefix sums and their applications", CMU-CS-90-190, 1990.

    Examples
    --------
    A rotation by a right angle, kicked once:

    >>> import numpy as np
    >>> from linscan import block_scan
    >>> A = np.array([[0.0, -1.0], [1.0, 0.0]])
    >>> b = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    >>> block_scan(A, b)
    array([[ 1.,  0.],
           [ 0.,  1.],
           [-1.,  0.]])
    """
    A, b, h0, reset, dtype = _prepare("block_scan", A, b, h0, reset)
    return pick("block_scan", dtype, b)(A, b, h0, reverse=bool(reverse), reset=reset, workers=workers)


def _prepare(who: str, A: Any, b: Any, h0: Any, reset: Any) -> tuple[Any, ...]:
    """All arguments as arrays of one dtype, broadcast (without a copy) to the result's shape.

    `A` keeps size-1 axes where it broadcasts, so that engines need not read one matrix many times over, but has all
    axes.
    """
    xp, A, b, h0, reset = _arrays.take(who, A=A, b=b, h0=h0, reset=reset)
    dtype = _arrays.result_dtype(who, A=A, b=b, h0=h0)
    A, b = xp.asarray(A, dtype), xp.asarray(b, dtype)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"{who}: A must have shape (..., T, n, n); got {A.shape}")
    n = A.shape[-1]
    if b.ndim < 2 or b.shape[-1] != n:
        raise ValueError(f"{who}: b must have shape (..., T, {n}) to fit A; got {b.shape}")
    shapes = {"A without its matrix axes": A.shape[:-2], "b without its last axis": b.shape[:-1]}
    shape = _arrays.broadcast_shapes(who, **shapes)
    A = A.reshape((1,) * (len(shape) + 2 - A.ndim) + A.shape)
    b = b if b.shape[:-1] == shape else xp.broadcast_to(b, (*shape, n))
    if h0 is not None:
        h0 = _arrays.broadcast_to(who, "h0", xp.asarray(h0, dtype), (*shape[:-1], n))
    if reset is not None:
        reset = xp.asarray(reset)
        if reset.dtype.kind not in "biu":
            raise TypeError(f"{who}: reset must be boolean; got {reset.dtype}")
        reset = _arrays.broadcast_to(who, "reset", reset.astype(bool, copy=False), shape)
    return A, b, h0, reset, dtype


def block_step(A: Array, b: Array, h: Array) -> Array:
    """One step of `block_scan`: ``A h + b``.

    Parameters
    ----------
    A : array_like
        Transition matrix of this step, (…, n, n).
    b : array_like
        Input of this step, (…, n).
    h : array_like
        The state before it, (…, n). Leading axes broadcast.

    Returns
    -------
    h : array
        The state after it, (…, n), a new array.

    Raises
    ------
    ValueError
        If the matrices are not square, or shapes do not fit.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.

    See Also
    --------
    linscan.block_scan : all steps at once.

    Notes
    -----
    One batched matrix product; with float16 or bfloat16 the arithmetic is float32.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import block_step
    >>> A, h = np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([1.0, 0.0])
    >>> block_step(A, np.array([0.0, 5.0]), h)
    array([0., 6.])
    """
    xp, A, b, h = _arrays.take("block_step", A=A, b=b, h=h)
    dtype = _arrays.result_dtype("block_step", A=A, b=b, h=h)
    A, b, h = (xp.asarray(x, _arrays.accum_dtype(dtype)) for x in (A, b, h))
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"block_step: A must have shape (..., n, n); got {A.shape}")
    for name, x in (("b", b), ("h", h)):
        if x.shape[-1:] != A.shape[-1:]:
            raise ValueError(f"block_step: {name} must have shape (..., {A.shape[-1]}) to fit A; got {x.shape}")
    vectors = {"b without its last axis": b.shape[:-1], "h without its last axis": h.shape[:-1]}
    _arrays.broadcast_shapes("block_step", **{"A without its matrix axes": A.shape[:-2]}, **vectors)
    return ((A @ h[..., None])[..., 0] + b).astype(dtype, copy=False)


def block_scan_vjp(
    A: Array,
    b: Array,
    h0: Array | None = None,
    *,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array, Array | None]]]:
    """`block_scan` and its pullback.

    Parameters
    ----------
    A, b, h0, reverse, reset, workers
        As in `block_scan`.

    Returns
    -------
    h : array
        What `block_scan` returns.
    pullback : callable
        ``pullback(dh)`` returns ``(dA, db, dh0)``, each of its argument's shape and dtype (None where the argument
        was None). `dh` has the shape of `h`; None means zero. The final state is part of `h`: add its cotangent there.

    Raises
    ------
    ValueError, TypeError
        As in `block_scan`; the pullback raises ValueError if `dh` has the wrong shape.

    See Also
    --------
    linscan.block_scan : the recurrence.

    Notes
    -----
    The pullback is one scan in the opposite direction, O(T n²), retaining `A`, `h` and `h0`. Complex cotangents are
    ``∂L/∂Re + i ∂L/∂Im``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import block_scan_vjp
    >>> A = np.array([[0.5, 0.0], [1.0, 0.5]])
    >>> h, pullback = block_scan_vjp(A, np.array([[1.0, 0.0], [0.0, 0.0]]))
    >>> dA, db, dh0 = pullback(np.array([[0.0, 0.0], [0.0, 1.0]]))
    >>> db
    array([[1. , 0.5],
           [0. , 1. ]])
    """
    # With δ[t] = ∂L/∂h[t] taken over every path,
    #   δ[t]  = dh[t] + A[t+1]^H δ[t+1]       because h[t] reaches L through dh[t] and through h[t+1];
    #   db[t] = δ[t],   dA[t] = δ[t] h[t-1]^H,   dh0 = A[0]^H δ[0].
    # A reset at t replaces A[t] by 0: nothing flows back over it, and dA[t] = 0.
    given = _arrays.take("block_scan_vjp", A=A, b=b, h0=h0)[1:]
    A, b, h0, reset, dtype = _prepare("block_scan_vjp", A, b, h0, reset)
    options = {"reverse": bool(reverse), "reset": reset, "workers": workers}
    h = pick("block_scan", dtype, b)(A, b, h0, **options)
    run = pick("block_scan_pullback", dtype, b)

    def pullback(dh: Array | None) -> tuple[Array, Array, Array | None]:
        dh = _arrays.cotangent("block_scan_vjp", "dh", dh, h)
        dA, db, dh0 = run(A, h, h0, dh, **options)
        like = tuple(map(_arrays.grad_like, (dA, db, dh0), given))
        return like[0], like[1], like[2]

    return h, pullback
