"""Cascades of second-order sections: ``sosfilt`` with SciPy's conventions, the stable form of a high-order filter."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.ops.filters import adjoint, broadcast_signal, coefficient_dtype, state_in, state_out


def sosfilt(
    sos: Array, x: Array, axis: int = -1, zi: Array | None = None, *, workers: int | None = None
) -> Array | tuple[Array, Array]:
    r"""Filter along one axis with a cascade of ``y[t] = b0 x[t] + b1 x[t-1] + b2 x[t-2] - a1 y[t-1] - a2 y[t-2]``.

    Parameters
    ----------
    sos : array_like
        Sections as rows ``[b0, b1, b2, 1, a1, a2]``, (S, 6). Leading axes are one cascade per row or channel: they
        broadcast against the shape of `x` without `axis`.
    x : array_like
        The signal, real or complex.
    axis : int, default -1
        The axis of `x` that is time.
    zi : array_like, optional
        Initial state of every section (transposed direct form II): (S, …) in front of the shape of the result, whose
        `axis` then holds 2 values; size-1 axes broadcast. A state (S, 2) is used for all rows, a scalar (0) fills it.
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
        If `sos` is not (…, S, 6) with S ≥ 1 or its fourth column is not 1 (checked on the host), or shapes do not fit.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    linscan.lfilter : one section of any order.
    linscan.sosfilt_vjp : the gradient.

    Notes
    -----
    O(T S) operations, all sections in one pass over memory on the CPU. The result dtype is the promoted dtype of all
    three; float16 and bfloat16 are storage around float32 arithmetic. On the CPU, filtering in pieces of any length and
    carrying `zf` gives the bits of one call: a block of one sample is a step.

    References
    ----------
    .. [1] A. V. Oppenheim and R. W. Schafer, "Discrete-Time Signal Processing", 3rd ed., 2009, section 6.3.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import sosfilt
    >>> sos = np.array([[1.0, 0.0, 0.0, 1.0, -0.5, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
    >>> sosfilt(sos, np.array([1.0, 0.0, 0.0]))
    array([1.  , 1.5 , 0.75])
    >>> y, zf = sosfilt(sos, np.array([1.0]), zi=0)
    >>> sosfilt(sos, np.zeros(2), zi=zf)[0]
    array([1.5 , 0.75])
    """
    sos, x, start, axis, dtype = _prepare("sosfilt", sos, x, axis, zi)
    y, state = pick("sosfilt", dtype, x)(sos, x, start, axis=axis, workers=workers)
    y = y.astype(dtype, copy=False)
    return y if zi is None else (y, state_out(state, axis, dtype, n_inner=2))


def _prepare(who: str, sos: Any, x: Any, axis: int, zi: Any) -> tuple[Any, ...]:
    """Sections (rows, S, 6), signal and state (rows, S, 2) broadcast to each other, in the dtype of the work."""
    xp, sos, x, zi = _arrays.take(who, sos=sos, x=x, zi=zi)
    dtype = _arrays.result_dtype(who, sos=sos, x=x, zi=zi)
    sos = xp.atleast_2d(xp.asarray(sos))
    if sos.shape[-1] != 6 or sos.shape[-2] == 0:
        raise ValueError(f"{who}: sos must have shape (..., n_sections, 6) with a section; got {sos.shape}")
    if _arrays.host_any(sos, lambda sos: sos[..., 3] != 1):
        raise ValueError(f"{who}: sos[..., 3] must be all ones; divide each section by it")
    compute = _arrays.accum_dtype(dtype)
    sos = sos.astype(coefficient_dtype(compute, sos), copy=False)
    x, rows, axis = broadcast_signal(who, xp.asarray(x), axis, compute, sos=sos.shape[:-2])
    sos = sos if sos.shape[:-2] == rows else xp.broadcast_to(sos, (*rows, *sos.shape[-2:]))
    return sos, x, state_in(who, xp, zi, rows, axis, (sos.shape[-2], 2), compute), axis, dtype


def sosfilt_vjp(
    sos: Array, x: Array, axis: int = -1, zi: Array | None = None, *, workers: int | None = None
) -> tuple[Any, Callable[..., tuple[Array, Array, Array | None]]]:
    """`sosfilt` and its pullback.

    Parameters
    ----------
    sos, x, axis, zi, workers
        As in `sosfilt`.

    Returns
    -------
    y or (y, zf)
        What `sosfilt` returns.
    pullback : callable
        ``pullback(dy)``, or ``pullback(dy, dzf)`` if `zi` was given, returns ``(dsos, dx, dzi)``, each of its
        argument's shape and dtype (None where the argument was None). A cotangent of None means zero. The fourth column
        of `dsos` is 0: it must stay 1.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `sosfilt`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    linscan.sosfilt : the filter.

    Notes
    -----
    The gradient of `linscan.lfilter`, section by section from the last: O(T S), retaining the input of every section.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import sosfilt_vjp
    >>> sos = np.array([[1.0, 0.0, 0.0, 1.0, -0.5, 0.0]])
    >>> y, pullback = sosfilt_vjp(sos, np.array([1.0, 0.0, 2.0]))
    >>> dsos, dx, dzi = pullback(np.array([0.0, 0.0, 1.0]))
    >>> dx
    array([0.25, 0.5 , 1.  ])
    """
    given = _arrays.take("sosfilt_vjp", sos=sos, x=x, zi=zi)[1:]
    sos, x, start, axis, dtype = _prepare("sosfilt_vjp", sos, x, axis, zi)
    xp, run = _arrays.namespace(x), pick("lfilter", dtype, x)
    sections = [(sos[..., s, :3], sos[..., s, 3:]) for s in range(sos.shape[-2])]
    signals, states = [x], []
    for s, (b, a) in enumerate(sections):
        y, state = run(b, a, signals[-1], None if start is None else start[..., s, :], axis=axis, workers=workers)
        signals.append(y)
        states.append(state)
    out, zf = y.astype(dtype, copy=False), state_out(xp.stack(states, axis=-2), axis, dtype, n_inner=2)

    def pullback(dy: Array | None, dzf: Array | None = None) -> tuple[Array, Array, Array | None]:
        dy, dzf = _arrays.cotangent("sosfilt_vjp", "dy", dy, out), _arrays.cotangent("sosfilt_vjp", "dzf", dzf, zf)
        dzf = xp.moveaxis(dzf, (0, 1 + axis), (-2, -1))
        dsos: list[Array] = []
        dzi: list[Array] = []
        for s in reversed(range(len(sections))):
            b, a = sections[s]
            db, da, dy, dz = adjoint(
                b, a, signals[s], signals[s + 1], dy, dzf[..., s, :], axis=axis, workers=workers, dtype=dtype
            )
            da[..., 0] = 0
            dsos.insert(0, xp.concatenate([db, da], axis=-1))
            dzi.insert(0, dz)
        dz = xp.stack(dzi, axis=-2)
        dz = dz if zi is None or np.ndim(given[2]) <= x.ndim else state_out(dz, axis, dz.dtype, n_inner=2)
        dsos_dx = _arrays.grad_like(xp.stack(dsos, axis=-2), given[0]), _arrays.grad_like(dy, given[1])
        return *dsos_dx, _arrays.grad_like(dz, given[2])

    return (out if zi is None else (out, zf)), pullback
