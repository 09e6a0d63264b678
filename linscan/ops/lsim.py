"""Continuous linear time-invariant systems: ``lsim`` samples one exactly and then runs the loop of `dlsim`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.ops.discretize import discretize_vjp
from linscan.ops.expm import conj_transpose, expm, expm_adjoint
from linscan.ops.lti import adjoint
from linscan.ops.systems import arrays_of, broadcast, state_space


def lsim(
    system: Any, U: Array | None, T: Array, X0: Array | None = None, interp: bool = True, *, workers: int | None = None
) -> tuple[Array, Array, Array]:
    r"""Simulate ``x' = A x + B u``, ``y = C x + D u`` at the times `T`, exactly for an input linear between them.

    Parameters
    ----------
    system : tuple or scipy.signal.lti
        ``(A, B, C, D)``, ``(num, den)`` or ``(z, p, k)``; the last two are converted by SciPy, with its order of the
        states. Matrices may have leading axes, one system per row, that broadcast against those of `U`. D may be None
        (zero).
    U : array_like or None
        Input at the times `T`: (len(T),) for one input, (len(T), m) for m, or (…, len(T), m) for many rows. None means
        zero.
    T : array_like
        Times, equally spaced, the first one not negative. Before it the input is zero.
    X0 : array_like, optional
        State (…, n) at time 0. None means zero.
    interp : bool, default True
        Whether the input is linear between the times; if False, it is constant after each of them.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    T : array
        The times.
    yout : array
        Outputs (…, len(T), p).
    xout : array
        States (…, len(T), n). As in SciPy, axes of length 1 are squeezed from `yout` and `xout`; unlike there, nothing
        is squeezed if any argument has leading axes.

    Raises
    ------
    ValueError
        If the times are negative or not equally spaced (checked on the host), the system has an unknown form, or shapes
        do not fit.
    TypeError
        For an unsupported dtype, a discrete system, or host and GPU arrays mixed.

    See Also
    --------
    linscan.discretize : the matrices of one step.
    linscan.dlsim : discrete systems.
    linscan.lsim_vjp : the gradient.

    Notes
    -----
    One matrix exponential, then O(T n (n + m)). The result dtype is the promoted dtype of matrices, input and state
    (times do not take part): integer matrices become float64, float32 stays; the exponential is taken in double
    precision.

    References
    ----------
    .. [1] C. F. Van Loan, "Computing integrals involving the matrix exponential", IEEE Trans. Automatic Control 23(3),
       1978, doi:10.1109/TAC.1978.1101743.

    Examples
    --------
    A mass that is pushed with constant force:

    >>> import numpy as np
    >>> from linscan import lsim
    >>> system = [[0, 1], [0, 0]], [[0], [1]], [[1, 0]], None
    >>> times, position, state = lsim(system, np.ones(3), [0.0, 1.0, 2.0])
    >>> position
    array([0. , 0.5, 2. ])
    """
    times, outputs, _ = _simulate("lsim", system, U, T, X0, interp, workers)
    return times, *outputs


def lsim_vjp(
    system: Any, U: Array | None, T: Array, X0: Array | None = None, interp: bool = True, *, workers: int | None = None
) -> tuple[tuple[Array, Array], Callable[..., tuple[Any, Array | None, Array | None]]]:
    """`lsim` of a system given by matrices, and its pullback.

    Parameters
    ----------
    system, U, T, X0, interp, workers
        As in `lsim`; the system must be ``(A, B, C, D)``.

    Returns
    -------
    yout, xout : tuple of arrays
        What `lsim` returns, without the times.
    pullback : callable
        ``pullback(dy, dx)`` returns ``((dA, dB, dC, dD), dU, dX0)``, each of its argument's shape and dtype (None where
        the argument was None). A cotangent of None means zero. Times are not differentiated.

    Raises
    ------
    ValueError, TypeError
        As in `lsim`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    linscan.lsim : the simulation.
    linscan.discretize_vjp : the gradient of one step's matrices.

    Notes
    -----
    One simulation backwards in time, a matrix exponential of twice the size, and four matrix products.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import lsim_vjp
    >>> system = np.array([[-1.0]]), np.array([[1.0]]), np.array([[1.0]]), None
    >>> (y, x), pullback = lsim_vjp(system, None, [0.0, 1.0], np.array([3.0]))
    >>> dsystem, dU, dX0 = pullback(np.array([0.0, 1.0]), None)
    >>> dX0
    array([0.36787944])
    """
    if hasattr(system, "to_ss") or len(system) != 4:
        raise ValueError("lsim_vjp: system must be (A, B, C, D)")
    _, outputs, pullback = _simulate("lsim_vjp", system, U, T, X0, interp, workers)
    return outputs, pullback


def _simulate(who: str, system: Any, U: Any, T: Any, X0: Any, interp: bool, workers: Any) -> tuple[Any, ...]:
    """Times, outputs and pullback."""
    matrices, _, _ = state_space(who, system, discrete=False)
    times, step = _times(who, T)
    named = _arrays.take(who, **dict(zip("ABCD", matrices, strict=True)), U=U, X0=X0)
    xp, given, silent = named[0], named[1:], U is None or (np.ndim(U) == 0 and not _arrays.host_any(named[5] != 0))
    U = xp.zeros((len(times), np.atleast_2d(matrices[1]).shape[-1]), bool) if silent else U
    *arrays, dtype = arrays_of(who, matrices, U, X0)
    if arrays[4].shape[-2] != len(times):
        raise ValueError(f"{who}: U must have one sample per time, {len(times)}; got shape {given[4].shape}")
    A, B, C, D, u, x0 = broadcast(who, *arrays)
    (a, *inputs), back_to_matrices = discretize_vjp(A, B, step, "foh" if interp else "zoh")
    a, *inputs = (v.astype(u.dtype, copy=False) for v in (a, *inputs))
    # x[t+1] = Ā x[t] + B_prev u[t] + B̄ u[t+1]: two inputs, the second one sample ahead.
    b, ahead = (inputs[0], u) if not interp else (xp.concatenate(inputs[::-1], axis=-1), _with_next(u))
    first, back_to_start = _at_first_time(A, x0, times)
    nothing = xp.zeros((*a.shape[:-2], 0, a.shape[-1]), u.dtype), xp.zeros((*a.shape[:-2], 0, b.shape[-1]), u.dtype)
    x = pick("dlsim", dtype, u)(a, b, *nothing, ahead, first, workers=workers)[1]
    y = x @ C.swapaxes(-1, -2) + u @ D.swapaxes(-1, -2)
    outputs = tuple((v.squeeze() if v.ndim == 2 else v).astype(dtype, copy=False) for v in (y, x))

    def pullback(dy: Array | None = None, dx: Array | None = None) -> tuple[Any, Array | None, Array | None]:
        dy = _arrays.cotangent(who, "dy", dy, outputs[0]).astype(u.dtype).reshape(y.shape)
        dx = _arrays.cotangent(who, "dx", dx, outputs[1]).astype(u.dtype).reshape(x.shape)
        da, db, d_ahead, dx0 = adjoint(a, b, ahead, x, dx + dy @ C.conj(), dtype=dtype, workers=workers)
        du, m = dy @ D.conj() + d_ahead[..., : u.shape[-1]], u.shape[-1]
        du[..., 1:, :] += d_ahead[..., :-1, m:] if interp else 0
        dA, dB, _ = back_to_matrices(da, *((db[..., m:], db[..., :m]) if interp else (db,)))
        dA_start, dx0 = back_to_start(dx0)
        dC, dD = dy.swapaxes(-1, -2) @ x.conj(), dy.swapaxes(-1, -2) @ u.conj()
        du = du[..., 0] if np.ndim(given[4]) < 2 else du
        *dsystem, du, dx0 = map(_arrays.grad_like, (dA + dA_start, dB, dC, dD, du, dx0), given)
        return tuple(dsystem), du, dx0

    return times, outputs, pullback


def _times(who: str, T: Any) -> tuple[Array, Array]:
    """The times as an array, and their spacing (1 if there is only one)."""
    xp, times = _arrays.take(who, T=T)
    times = xp.atleast_1d(times)
    if times.ndim != 1 or len(times) == 0:
        raise ValueError(f"{who}: T must be 1-D and not empty; got shape {times.shape}")
    if _arrays.host_any(times[0] < 0):
        raise ValueError(f"{who}: T must not start before 0; got {times[0]}")
    steps = xp.diff(times)
    if _arrays.host_any(~xp.isclose(steps, steps[:1])):
        raise ValueError(f"{who}: T must be equally spaced; got steps from {steps.min()} to {steps.max()}")
    return times, steps[0] if len(steps) else xp.ones(())


def _with_next(u: Array) -> Array:
    """The input beside the input one sample later (zero after the last, where nothing uses it)."""
    xp = _arrays.namespace(u)
    return xp.concatenate([u, xp.concatenate([u[..., 1:, :], xp.zeros_like(u[..., :1, :])], axis=-2)], axis=-1)


def _at_first_time(A: Array, x0: Array, times: Array) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """The state at the first time, ``e^(A T[0]) x0``, and the pullback to A and x0."""
    if not _arrays.host_any(times[0] != 0, otherwise=True):
        return x0, lambda grad: (_arrays.namespace(A).zeros_like(A), grad)
    wide = np.promote_types(A.dtype, np.float64)
    power = A.astype(wide) * times[0]
    e, start = expm(power), x0.astype(wide)[..., None]

    def pullback(grad: Array) -> tuple[Array, Array]:
        grad = grad.astype(wide)[..., None]
        return times[0] * expm_adjoint(power, grad @ conj_transpose(start)), (conj_transpose(e) @ grad)[..., 0]

    return (e @ start)[..., 0].astype(x0.dtype), pullback
