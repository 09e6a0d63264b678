"""Discrete linear time-invariant systems: ``dlsim`` with SciPy's conventions, one step of it, its gradient.

`linscan.ops.systems` says what counts as a system; `linscan.ops.lsim` samples continuous ones and then runs the same
loop.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.ops.systems import arrays_of, broadcast, state_space


def dlsim(
    system: Any, u: Array, t: Array | None = None, x0: Array | None = None, *, workers: int | None = None
) -> tuple[Array, ...]:
    r"""Simulate ``x[k+1] = A x[k] + B u[k]``, ``y[k] = C x[k] + D u[k]`` from ``x[0] = x0``.

    Parameters
    ----------
    system : tuple or scipy.signal.dlti
        ``(A, B, C, D, dt)``, ``(num, den, dt)`` or ``(z, p, k, dt)``; the last two are converted by SciPy, with its
        order of the states. Matrices may have leading axes, one system per row, that broadcast against those of `u`. D
        may be None (zero). Real or complex; ``dt`` only sets `tout`.
    u : array_like
        Input (T,) for one input, (T, m) for m, or (…, T, m) for many rows.
    t : array_like, optional
        The times of `u`, if they are not ``dt`` apart: the input is then interpolated linearly at ``0, dt, …`` up to
        ``t[-1]``.
    x0 : array_like, optional
        Initial state (…, n), n states. None means zero.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    tout : array
        Times of the output, float64.
    yout : array
        Outputs (…, T, p).
    xout : array
        Only if the system was given by matrices: states (…, T, n).

    Raises
    ------
    ValueError
        If the system has an unknown form, or shapes do not fit.
    TypeError
        For an unsupported dtype, a continuous system, or host and GPU arrays mixed.

    See Also
    --------
    linscan.dlsim_step : one step.
    linscan.lsim : continuous systems.
    linscan.lfilter : the faster way for one input and one output.
    linscan.dlsim_vjp : the gradient.

    Notes
    -----
    O(T (n + m) (n + p)) operations. The impulse response is ``D, CB, CAB, …``. The result dtype is the promoted dtype
    of matrices, input and state: unlike SciPy's, complex and single-precision systems keep their dtype. To continue
    where a run ended, start the next at its last sample, ``dlsim(system, u[k:], x0=xout[-1])`` after ``dlsim(system,
    u[:k + 1])``; on the CPU this gives the bits of one run.

    References
    ----------
    .. [1] T. Kailath, "Linear Systems", 1980, chapter 2.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import dlsim
    >>> system = np.array([[0.5]]), np.array([[1.0]]), np.array([[2.0]]), np.array([[0.0]]), 0.1
    >>> tout, yout, xout = dlsim(system, np.ones(3))
    >>> yout[:, 0]
    array([0., 2., 3.])
    """
    matrices, dt, given = state_space("dlsim", system, discrete=True)
    *arrays, dtype = arrays_of("dlsim", matrices, u, x0)
    tout, arrays[4], _ = _sampled("dlsim", arrays[4], t, dt)
    y, x = pick("dlsim", dtype, arrays[4])(*broadcast("dlsim", *arrays), workers=workers)
    results = tout, y.astype(dtype, copy=False), x.astype(dtype, copy=False)
    return results if given else results[:2]


def _sampled(who: str, u: Array, t: Any, dt: Any) -> tuple[Array, Array, Any]:
    """Output times, the input at these times, and the pullback of the interpolation (None if there was none)."""
    xp = _arrays.namespace(u)
    if t is None:
        return xp.linspace(0.0, max(0, u.shape[-2] - 1) * dt, u.shape[-2]), u, None
    times = np.atleast_1d(np.asarray(t, np.float64))
    if times.shape != u.shape[-2:-1] or len(times) == 0:
        raise ValueError(f"{who}: t must have one entry per sample of u, {u.shape[-2]}; got shape {times.shape}")
    tout = np.linspace(0.0, times[-1], int(np.floor(times[-1] / dt)) + 1)
    before = np.clip(np.searchsorted(times, tout, side="right") - 1, 0, max(0, len(times) - 2))
    after = np.minimum(before + 1, len(times) - 1)
    width = np.where(after > before, times[after] - times[before], 1)
    before, after, weight = map(xp.asarray, (before, after, (tout - times[before])[:, None] / width[:, None]))
    weight = weight.astype(_arrays.real_dtype(u.dtype))

    def pullback(grad: Array) -> Array:
        total = xp.zeros((*grad.shape[:-2], *u.shape[-2:]), grad.dtype)
        xp.add.at(total, (..., before, slice(None)), (1 - weight) * grad)
        xp.add.at(total, (..., after, slice(None)), weight * grad)
        return total

    return xp.asarray(tout), (1 - weight) * u[..., before, :] + weight * u[..., after, :], pullback


def dlsim_step(system: Any, u: Array, x: Array) -> tuple[Array, Array]:
    """One step of `dlsim`: the output now, and the next state.

    Parameters
    ----------
    system : tuple
        As in `dlsim`; matrices are best, other forms are converted at every call.
    u : array_like
        The input of this step, (…, m).
    x : array_like
        The state before it, (…, n).

    Returns
    -------
    y : array
        ``C x + D u``, (…, p).
    x : array
        ``A x + B u``, (…, n).

    Raises
    ------
    ValueError, TypeError
        As in `dlsim`.

    See Also
    --------
    linscan.dlsim : all steps at once.

    Notes
    -----
    Four small matrix products.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import dlsim_step
    >>> system = np.array([[0.5]]), np.array([[1.0]]), np.array([[2.0]]), None, 0.1
    >>> x = np.zeros(1)
    >>> for u in (1.0, 1.0, 1.0):
    ...     y, x = dlsim_step(system, np.array([u]), x)
    >>> y
    array([3.])
    """
    matrices, _, _ = state_space("dlsim_step", system, discrete=True)
    u = _arrays.take("dlsim_step", u=u)[1]
    u = _arrays.namespace(u).atleast_1d(u)[..., None, :]
    A, B, C, D, u, x, dtype = arrays_of("dlsim_step", matrices, u, x)
    x, u = x[..., None], u.swapaxes(-1, -2)
    return (C @ x + D @ u)[..., 0].astype(dtype, copy=False), (A @ x + B @ u)[..., 0].astype(dtype, copy=False)


def dlsim_vjp(
    system: Any, u: Array, t: Array | None = None, x0: Array | None = None, *, workers: int | None = None
) -> tuple[tuple[Array, Array], Callable[..., tuple[Any, Array, Array | None]]]:
    """`dlsim` of a system given by matrices, and its pullback.

    Parameters
    ----------
    system, u, t, x0, workers
        As in `dlsim`; the system must be ``(A, B, C, D, dt)``.

    Returns
    -------
    yout, xout : tuple of arrays
        What `dlsim` returns, without the times.
    pullback : callable
        ``pullback(dy, dx)`` returns ``((dA, dB, dC, dD, None), du, dx0)``, each of its argument's shape and dtype (None
        where the argument was None). A cotangent of None means zero. Times are not differentiated.

    Raises
    ------
    ValueError, TypeError
        As in `dlsim`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    linscan.dlsim : the simulation.
    linscan.lfilter_vjp : for a transfer function.

    Notes
    -----
    One simulation backwards in time and four matrix products; retains the input and the states.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import dlsim_vjp
    >>> system = np.array([[0.5]]), np.array([[1.0]]), np.array([[2.0]]), None, 0.1
    >>> (y, x), pullback = dlsim_vjp(system, np.ones(3))
    >>> dsystem, du, dx0 = pullback(np.array([[0.0], [0.0], [1.0]]), None)
    >>> du
    array([1., 2., 0.])
    """
    matrices, dt, is_given = state_space("dlsim_vjp", system, discrete=True)
    if not is_given:
        raise ValueError("dlsim_vjp: system must be (A, B, C, D, dt); lfilter_vjp is for a transfer function")
    given = _arrays.take("dlsim_vjp", **dict(zip("ABCD", matrices, strict=True)), u=u, x0=x0)[1:]
    *arrays, dtype = arrays_of("dlsim_vjp", matrices, u, x0)
    _, arrays[4], back_to_given = _sampled("dlsim_vjp", arrays[4], t, dt)
    A, B, C, D, u, x0 = broadcast("dlsim_vjp", *arrays)
    y, x = pick("dlsim", dtype, u)(A, B, C, D, u, x0, workers=workers)
    outputs = y.astype(dtype, copy=False), x.astype(dtype, copy=False)

    def pullback(dy: Array | None = None, dx: Array | None = None) -> tuple[Any, Array, Array | None]:
        dy = _arrays.cotangent("dlsim_vjp", "dy", dy, outputs[0]).astype(u.dtype)
        dx = _arrays.cotangent("dlsim_vjp", "dx", dx, outputs[1]).astype(u.dtype)
        dA, dB, du, dx0 = adjoint(A, B, u, x, dx + dy @ C.conj(), dtype=dtype, workers=workers)
        dC, dD = dy.swapaxes(-1, -2) @ x.conj(), dy.swapaxes(-1, -2) @ u.conj()
        du = du + dy @ D.conj()
        du = du if back_to_given is None else back_to_given(du)
        du = du[..., 0] if np.ndim(given[4]) < 2 else du
        *dsystem, du, dx0 = map(_arrays.grad_like, (dA, dB, dC, dD, du, dx0), given)
        return (*dsystem, None), du, dx0

    return outputs, pullback


def adjoint(A: Array, B: Array, u: Array, x: Array, g: Array, *, dtype: Any, workers: Any) -> tuple[Array, ...]:
    """Gradients of A, B, the input and the first state, where `g` is ∂L/∂x[t] but for the path through later states."""
    # With λ[t] = ∂L/∂x[t] over every path,
    #   λ[t] = g[t] + A^H λ[t+1]          the same recurrence backwards, with A^H x + g for its output;
    #   dA = sum_t λ[t+1] x[t]^H,   dB = sum_t λ[t+1] u[t]^H,   du[t] = B^H λ[t+1],   dx0 = λ[0].
    xp, T = _arrays.namespace(x), x.shape[-2]
    back = A.conj().swapaxes(-1, -2)
    eye, zero = xp.broadcast_to(xp.eye(A.shape[-1], dtype=x.dtype), A.shape), xp.zeros(A.shape[:-1], x.dtype)
    flow = pick("dlsim", dtype, x)(back, eye, back, eye, g[..., ::-1, :], zero, workers=workers)[0][..., ::-1, :]
    later = flow[..., 1:, :].swapaxes(-1, -2)
    du = xp.zeros(u.shape, x.dtype)
    du[..., : max(0, T - 1), :] = flow[..., 1:, :] @ B.conj()
    past = slice(0, max(0, T - 1))
    return later @ x[..., past, :].conj(), later @ u[..., past, :].conj(), du, flow[..., 0, :] if T else zero
