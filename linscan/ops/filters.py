"""Rational filters ``lfilter`` with SciPy's conventions, and the checks `linscan.ops.sosfilt` shares with them.

Second-order sections, time-varying and state-space filters have files of their own: each is one equation and its
gradient.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick

_SAFE_ORDER = 6  # in float32, coefficients of a higher order no longer say where the poles are


def lfilter(
    b: Array, a: Array, x: Array, axis: int = -1, zi: Array | None = None, *, workers: int | None = None
) -> Array | tuple[Array, Array]:
    r"""Filter along one axis: ``a[0] y[t] = b[0] x[t] + … + b[M] x[t-M] - a[1] y[t-1] - … - a[N] y[t-N]``.

    Parameters
    ----------
    b, a : array_like
        Numerator (M + 1) and denominator (N + 1); divided by ``a[0]`` first. Leading axes are one filter per row or
        channel: they broadcast against the shape of `x` without `axis` (a bank of F filters on one signal is (F, M +
        1)).
    x : array_like
        The signal, real or complex.
    axis : int, default -1
        The axis of `x` that is time.
    zi : array_like, optional
        Initial state of the transposed direct form II, ``max(M, N)`` values along `axis` and otherwise the shape of the
        result, where size-1 axes broadcast. A 1-D state is used for all rows, a scalar (0) fills it. None means zero.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    y : array
        The filtered signal, of the shape of `x` (broadcast against the filters).
    zf : array
        Only if `zi` is given: the final state, the `zi` of the samples that follow.

    Raises
    ------
    ValueError
        If ``a[0]`` is 0 (on the host; on the GPU the result is inf or NaN), a coefficient array is empty, or shapes do
        not fit.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    Warns
    -----
    RuntimeWarning
        If a feedback order above 6 is computed in single precision: rounding its coefficients may move a pole out of
        the unit circle. Use `linscan.sosfilt`, or float64.

    See Also
    --------
    linscan.sosfilt : the stable form for higher orders.
    linscan.allpole : coefficients that change in time.
    linscan.lfilter_vjp : the gradient.

    Notes
    -----
    O(T (M + N)) operations. The result dtype is the promoted dtype of all four; float16 and bfloat16 are storage around
    float32 arithmetic. On the CPU, filtering in pieces of any length and carrying `zf` gives the bits of one call: a
    block of one sample is a step. Numerators of hundreds of taps are faster through `linscan.fft_conv`.

    References
    ----------
    .. [1] A. V. Oppenheim and R. W. Schafer, "Discrete-Time Signal Processing", 3rd ed., 2009, section 6.3.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import lfilter
    >>> lfilter([1.0], [1.0, -0.5], np.ones(3))
    array([1.  , 1.5 , 1.75])
    >>> y, zf = lfilter([1.0], [1.0, -0.5], np.ones(2), zi=0)
    >>> lfilter([1.0], [1.0, -0.5], np.ones(1), zi=zf)
    (array([1.75]), array([0.875]))
    """
    b, a, x, start, axis, dtype = _prepare("lfilter", b, a, x, axis, zi)
    y, state = pick("lfilter", dtype, x)(b, a, x, start, axis=axis, workers=workers)
    y = y.astype(dtype, copy=False)
    return y if zi is None else (y, state_out(state, axis, dtype))


def lfilter_vjp(
    b: Array, a: Array, x: Array, axis: int = -1, zi: Array | None = None, *, workers: int | None = None
) -> tuple[Any, Callable[..., tuple[Array, Array, Array, Array | None]]]:
    """`lfilter` and its pullback.

    Parameters
    ----------
    b, a, x, axis, zi, workers
        As in `lfilter`.

    Returns
    -------
    y or (y, zf)
        What `lfilter` returns.
    pullback : callable
        ``pullback(dy)``, or ``pullback(dy, dzf)`` if `zi` was given, returns ``(db, da, dx, dzi)``, each of its
        argument's shape and dtype (None where the argument was None). A cotangent of None means zero.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `lfilter`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    linscan.lfilter : the filter.

    Notes
    -----
    Two filters backwards in time and one product of signals per coefficient: O(T (M + N)), retaining `x` and `y`.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import lfilter_vjp
    >>> y, pullback = lfilter_vjp([1.0], [1.0, -0.5], np.array([1.0, 0.0, 2.0]))
    >>> db, da, dx, dzi = pullback(np.array([0.0, 0.0, 1.0]))
    >>> dx
    array([0.25, 0.5 , 1.  ])
    """
    given = _arrays.take("lfilter_vjp", b=b, a=a, x=x, zi=zi)[1:]
    b, a, x, start, axis, dtype = _prepare("lfilter_vjp", b, a, x, axis, zi)
    y, state = pick("lfilter", dtype, x)(b, a, x, start, axis=axis, workers=workers)
    out, zf = y.astype(dtype, copy=False), state_out(state, axis, dtype)
    scale = _arrays.namespace(x).atleast_1d(given[1])[..., :1]  # a[0]

    def pullback(dy: Array | None, dzf: Array | None = None) -> tuple[Array, Array, Array, Array | None]:
        dy, dzf = _arrays.cotangent("lfilter_vjp", "dy", dy, out), _arrays.cotangent("lfilter_vjp", "dzf", dzf, zf)
        dzf = _arrays.namespace(x).moveaxis(dzf, axis, -1)
        db, da, dx, dzi = adjoint(b, a, x, y, dy, dzf, axis=axis, workers=workers, dtype=dtype)
        # b and a are the given ones over a[0]: da[0] = -conj(sum_k b[k] conj(db[k]) + sum_k a[k] conj(da[k])) /
        # conj(a[0]).
        da[..., 0] = -(b.conj() * db).sum(axis=-1) - (a.conj() * da)[..., 1:].sum(axis=-1)
        db, da = db / scale.conj(), da / scale.conj()
        dzi = None if zi is None else dzi if np.ndim(given[3]) < x.ndim else state_out(dzi, axis, dzi.dtype)
        like = tuple(map(_arrays.grad_like, (db, da, dx, dzi), given))
        return like[0], like[1], like[2], like[3]

    return (out if zi is None else (out, zf)), pullback


def adjoint(
    b: Array, a: Array, x: Array, y: Array, dy: Array, dzf: Array, *, axis: int, workers: Any, dtype: Any
) -> tuple[Array, Array, Array, Array]:
    """Gradients of one filter with ``a[0] = 1``: of `b`, `a` (rows, taps), `x`, and the initial state (rows, order)."""
    # The state only delays: y[t] = v[t] - sum_k a[k] y[t-k] with v[t] = sum_k b[k] x[t-k] + zi[t], and zf[k] is what v
    # would get at time T + k. With w[t] = ∂L/∂v[t], so that w[T + k] = dzf[k],
    #   w[t]  = dy[t] - sum_k conj(a[k]) w[t+k]   the all-pole filter, backwards in time and started from dzf;
    #   dx[t] = sum_k conj(b[k]) w[t+k],   dzi[k] = w[k];
    #   db[k] = sum_t conj(x[t]) w[t+k],   da[k] = -sum_t conj(y[t]) w[t+k].
    xp, T, order = _arrays.namespace(x), x.shape[axis], dzf.shape[-1]
    run, options = pick("lfilter", dtype, x), {"axis": axis, "workers": workers}
    one, b_conj, a_conj = xp.ones_like(a[..., :1]), b.conj(), a.conj()
    dzf, dy = dzf.astype(x.dtype, copy=False), xp.flip(dy, axis).astype(x.dtype, copy=False)
    w, _ = run(one, a_conj, dy, -_tail(a_conj, dzf), **options)
    dx, _ = run(b_conj, one, w, _tail(b_conj, dzf), **options)
    w = xp.concatenate([xp.flip(xp.moveaxis(w, axis, -1), -1), dzf], axis=-1)
    x, y = (xp.ascontiguousarray(xp.moveaxis(v, axis, -1)).conj() for v in (x, y))
    db = [(x * w[..., k : k + T]).sum(axis=-1) for k in range(b.shape[-1])]
    da = [-(y * w[..., k : k + T]).sum(axis=-1) for k in range(a.shape[-1])]
    return xp.stack(db, axis=-1), xp.stack(da, axis=-1), xp.flip(dx, axis), w[..., :order]


def _tail(c: Array, w: Array) -> Array:
    """What values `w` just before the start leave in the state of the filter `c`: ``sum_k c[k] w[k-1-s]``."""
    xp, order = _arrays.namespace(c), c.shape[-1] - 1
    if order == 0:
        return xp.zeros((*w.shape[:-1], 0), w.dtype)
    return xp.stack([(c[..., s + 1 :] * w[..., : order - s]).sum(axis=-1) for s in range(order)], axis=-1)


def _prepare(who: str, b: Any, a: Any, x: Any, axis: int, zi: Any) -> tuple[Any, ...]:
    """Normalised coefficients (rows, taps), signal, state (rows, order): broadcast, in the dtype of the work."""
    xp, b, a, x, zi = _arrays.take(who, b=b, a=a, x=x, zi=zi)
    dtype = _arrays.result_dtype(who, b=b, a=a, x=x, zi=zi)
    b, a, x = xp.atleast_1d(xp.asarray(b)), xp.atleast_1d(xp.asarray(a)), xp.asarray(x)
    for name, taps in (("b", b), ("a", a)):
        if taps.shape[-1] == 0:
            raise ValueError(f"{who}: {name} must hold at least one coefficient; got shape {taps.shape}")
    compute = _arrays.accum_dtype(dtype)
    b, a = (v.astype(coefficient_dtype(compute, b, a), copy=False) for v in (b, a))
    if _arrays.host_any(a, lambda a: a[..., 0] == 0):
        raise ValueError(f"{who}: a[0] must not be 0")
    if _arrays.real_dtype(compute) == np.float32 and a.shape[-1] - 1 > _SAFE_ORDER:
        order = a.shape[-1] - 1
        message = f"{who}: feedback of order {order} in single precision may be unstable; use sosfilt or float64"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    b, a = b / a[..., :1], a / a[..., :1]
    x, rows, axis = broadcast_signal(who, x, axis, compute, b=b.shape[:-1], a=a.shape[:-1])
    b, a = (v if v.shape[:-1] == rows else xp.broadcast_to(v, (*rows, v.shape[-1])) for v in (b, a))
    return b, a, x, state_in(who, xp, zi, rows, axis, (max(b.shape[-1], a.shape[-1]) - 1,), compute), axis, dtype


def coefficient_dtype(compute: np.dtype, *coefficients: Array) -> np.dtype:
    """The dtype of the work, or its real one: a real filter of a complex signal stays real."""
    is_complex = any(c.dtype.kind == "c" for c in coefficients)
    return compute if is_complex else _arrays.real_dtype(compute)


def broadcast_signal(who: str, x: Array, axis: int, dtype: np.dtype, **leading: tuple[int, ...]) -> tuple[Any, ...]:
    """`x` broadcast against the filters' leading axes; its shape without time; the position of time."""
    if x.ndim == 0:
        raise ValueError(f"{who}: x must be at least 1-D; got a scalar")
    axis = _arrays.check_axis(who, axis, x.ndim)
    rows = x.shape[:axis] + x.shape[axis + 1 :]
    rows, length, axis = _arrays.broadcast_shapes(who, **leading, x_without_axis=rows), x.shape[axis], axis - x.ndim
    axis += len(rows) + 1  # new axes come in front
    shape, x = (*rows[:axis], length, *rows[axis:]), x.astype(dtype, copy=False)
    return x if x.shape == shape else _arrays.broadcast_to(who, "x", x, shape), rows, axis


def state_in(
    who: str, xp: Any, zi: Any, rows: tuple[int, ...], axis: int, inner: tuple[int, ...], dtype: np.dtype
) -> Any:
    """`zi` as (rows, *inner); the user has the last of `inner` along `axis` and the others, if any, in front."""
    if zi is None:
        return None
    lead, size = inner[:-1], inner[-1]
    expected = (*lead, *rows[:axis], size, *rows[axis:])
    zi = xp.asarray(zi, dtype)
    if zi.ndim == len(expected) and zi.shape[: len(lead)] == lead and zi.shape[len(lead) + axis] == size:
        zi = xp.moveaxis(zi, (*range(len(lead)), len(lead) + axis), tuple(range(-len(inner), 0)))
    elif zi.ndim and zi.shape != inner:
        raise ValueError(f"{who}: zi must have shape {expected}, {inner} for all rows, or be a scalar; got {zi.shape}")
    try:
        return xp.broadcast_to(zi, (*rows, *inner))
    except ValueError as error:
        raise ValueError(f"{who}: zi must broadcast to {expected}; got {zi.shape} with its state moved last") from error


def state_out(state: Array, axis: int, dtype: np.dtype, n_inner: int = 1) -> Array:
    """A state (rows, *inner) as the user has it: the inverse of `state_in`."""
    xp, lead = _arrays.namespace(state), n_inner - 1
    moved = xp.moveaxis(state, tuple(range(-n_inner, 0)), (*range(lead), lead + axis))
    return xp.ascontiguousarray(moved, dtype=dtype)
