"""Diagonal continuous state-space models to discrete ones, elementwise: ``discretize`` where A is a vector."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array, namespace
from linscan.ops import phi
from linscan.ops.discretize_methods import Outputs, check_options, step_length


def discretize_diag(
    a: Array,
    dt: Array,
    method: str = "zoh",
    *,
    alpha: float | None = None,
    prewarp: float | None = None,
) -> Outputs:
    r"""Discretise ``x' = a x + b u`` elementwise: ``x[t] = ā x[t-1] + w b u[t]``.

    Parameters
    ----------
    a : array_like
        Eigenvalues, real or complex; they may be 0.
    dt : array_like
        Positive step or steps; `a` and `dt` broadcast.
    method : {"zoh", "foh", "bilinear", "gbt", "euler", "backward_euler", "impulse", "zoh_euler"}
        As in `discretize`.
    alpha, prewarp : float, optional
        As in `discretize`.

    Returns
    -------
    a_bar : array
        ā, of the broadcast shape.
    w : array
        The weight of the current input: ``b_bar = w * b``.
    w_prev : array
        For ``"foh"`` only: the weight of the input one step before, ``x[t] = ā x[t-1] + w b u[t] + w_prev b u[t-1]``.

    Raises
    ------
    ValueError
        If the shapes do not broadcast, for a `dt` that is not positive and finite, an unknown method or option, or an
        eigenvalue at ``1 / (alpha dt)``. (On the GPU values are not looked at: the result is then NaN or inf.)
    TypeError
        For an unsupported dtype, a complex `dt`, or host and GPU arrays mixed.

    See Also
    --------
    discretize : for matrices, with the table of methods and the differences to SciPy.
    discretize_diag_vjp : the gradient.

    Notes
    -----
    Arithmetic is in double precision and the result is rounded once to the promoted dtype of `a` and `dt`: in single
    precision the phase of ``exp(dt a)`` would be off by ``|dt a|`` eps, which the powers of ā then multiply. Where
    ``|dt a|`` is small ``(e^z - 1)/z`` is taken without cancellation, at 0 as its limit.

    References
    ----------
    .. [1] A. Gu, A. Gupta, K. Goel, C. Ré, "On the parameterization and initialization of diagonal state space models",
       2022, arXiv:2206.11893.

    Examples
    --------
    A decay, an integrator and an oscillation:

    >>> from linscan import discretize_diag
    >>> a_bar, w = discretize_diag([-1.0, 0.0, 2.0j], 0.5)
    >>> a_bar.round(4)
    array([0.6065+0.j    , 1.    +0.j    , 0.5403+0.8415j])
    >>> w.round(4)
    array([0.3935+0.j    , 0.5   +0.j    , 0.4207+0.2298j])
    """
    return _discretize_diag("discretize_diag", a, dt, method, alpha, prewarp)[0]


def _discretize_diag(
    who: str, a: Any, dt: Any, method: str, alpha: float | None, prewarp: float | None
) -> tuple[Outputs, Callable[[Outputs], Outputs]]:
    """The outputs, and a pullback to a and dt that expects and returns double precision."""
    alpha = check_options(who, method, alpha, prewarp)
    xp, a, dt = _arrays.take(who, a=a, dt=dt)
    dtype = _arrays.result_dtype(who, a=a, dt=dt)
    work = np.dtype(np.complex128 if dtype.kind == "c" else np.float64)
    a, dt = xp.asarray(a), xp.asarray(dt)
    _arrays.broadcast_shapes(who, a=a.shape, dt=dt.shape)
    h, slope = step_length(who, dt, prewarp)
    a = a.astype(work)
    z = xp.asarray(h * a)
    if alpha and _arrays.host_any(abs(1 - alpha * z) < 4 * np.finfo(np.float64).eps):
        raise ValueError(
            f"{who}: 1 - {alpha:g} dt a is zero: a has an eigenvalue at {1 / alpha:g} / dt; "
            "use another dt, or an exponential method such as 'zoh'"
        )
    a_bar, *weights = _values(method, alpha, z)

    def pullback(grads: Outputs) -> Outputs:
        # ā = f(z) and w = h g(z) with z = h a, h = h(dt), f and g analytic:
        #   dz = conj(f'(z)) dā + conj(g'(z)) h dw;   da = h dz;   dh = Re(conj(a) dz + conj(g(z)) dw).
        f_slope, *slopes = _slopes(method, alpha, z, a_bar)
        grad_a, *grad_w = (grad.astype(work) for grad in grads)
        grad_z = f_slope.conj() * grad_a + sum(s.conj() * h * g for s, g in zip(slopes, grad_w, strict=True))
        grad_h = a.conj() * grad_z + sum(w.conj() * g for w, g in zip(weights, grad_w, strict=True))
        return h * grad_z, slope * grad_h.real

    return tuple(xp.asarray(out, dtype) for out in (a_bar, *(h * w for w in weights))), pullback


def _values(method: str, alpha: float | None, z: Array) -> Outputs:
    """``f(z)`` and ``g(z)`` of a method, where ``ā = f(dt a)`` and ``w = dt g(dt a)``; for foh also that of w_prev."""
    if alpha is not None:
        return (1 + (1 - alpha) * z) / (1 - alpha * z), 1 / (1 - alpha * z)
    a_bar = namespace(z).exp(z)
    if method == "zoh":
        return a_bar, phi.phi1(z)
    if method == "foh":
        return a_bar, phi.phi2(z), phi.phi1_slope(z)  # phi1 - phi2 is the derivative of phi1
    return a_bar, a_bar if method == "impulse" else namespace(z).ones_like(z)


def _slopes(method: str, alpha: float | None, z: Array, a_bar: Array) -> Outputs:
    """The derivatives of `_values` by z."""
    if alpha is not None:
        square = 1 / (1 - alpha * z) ** 2
        return square, alpha * square
    if method == "zoh":
        return a_bar, phi.phi1_slope(z)
    if method == "foh":
        return a_bar, phi.phi2_slope(z), phi.phi1_curve(z)
    return a_bar, a_bar if method == "impulse" else namespace(z).zeros_like(z)


def discretize_diag_vjp(
    a: Array,
    dt: Array,
    method: str = "zoh",
    *,
    alpha: float | None = None,
    prewarp: float | None = None,
) -> tuple[Outputs, Any]:
    """`discretize_diag` and its pullback.

    Parameters
    ----------
    a, dt, method, alpha, prewarp
        As in `discretize_diag`.

    Returns
    -------
    outputs : tuple of array
        What `discretize_diag` returns: ``(a_bar, w)``, for ``"foh"`` ``(a_bar, w, w_prev)``.
    pullback : callable
        ``pullback(da_bar, dw)``, for ``"foh"`` ``pullback(da_bar, dw, dw_prev)``, returns ``(da, ddt)``, each of its
        argument's shape and dtype. A cotangent has its output's shape; None means zero.

    Raises
    ------
    ValueError, TypeError
        As in `discretize_diag`; the pullback raises ValueError for a cotangent of the wrong shape.

    See Also
    --------
    discretize_diag : the forward.

    Notes
    -----
    Derivatives of ``(e^z - 1)/z`` and its kin cancel twice near 0; they are Taylor series there. The pullback retains
    arrays of the broadcast shape in double precision.

    References
    ----------
    .. [1] A. Gu, A. Gupta, K. Goel, C. Ré, "On the parameterization and initialization of diagonal state space models",
       2022, arXiv:2206.11893.

    Examples
    --------
    >>> from linscan import discretize_diag_vjp
    >>> (a_bar, w), pullback = discretize_diag_vjp([-2.0, 0.0], 0.5)
    >>> da, ddt = pullback(None, [1.0, 1.0])
    >>> da  # the second is dt^2 / 2
    array([0.0660603, 0.125    ])
    """
    who = "discretize_diag_vjp"
    _, a, dt = _arrays.take(who, a=a, dt=dt)
    outputs, back = _discretize_diag(who, a, dt, method, alpha, prewarp)
    names = ("da_bar", "dw", "dw_prev")

    def pullback(*grads: Array | None) -> tuple[Array | None, ...]:
        if len(grads) != len(outputs):
            raise TypeError(f"{who}: the pullback takes {len(outputs)} cotangents; got {len(grads)}")
        taken = map(_arrays.cotangent, [who] * len(grads), names, grads, outputs)
        return tuple(map(_arrays.grad_like, back(tuple(taken)), (a, dt)))

    return outputs, pullback
