"""Diagonal continuous state-space models to discrete ones, elementwise: ``discretize`` where A is a vector."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
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
    """The outputs, and a pullback to a and dt that returns double precision."""
    alpha = check_options(who, method, alpha, prewarp)
    xp, a, dt = _arrays.take(who, a=a, dt=dt)
    dtype = _arrays.result_dtype(who, a=a, dt=dt)
    a, dt = xp.asarray(a, dtype), xp.asarray(dt)
    _arrays.broadcast_shapes(who, a=a.shape, dt=dt.shape)
    h, slope = step_length(who, dt, prewarp)
    if alpha and _arrays.host_any(a, lambda a: abs(1 - alpha * h * a) < 4 * np.finfo(np.float64).eps):
        raise ValueError(
            f"{who}: 1 - {alpha:g} dt a is zero: a has an eigenvalue at {1 / alpha:g} / dt; "
            "use another dt, or an exponential method such as 'zoh'"
        )

    def pullback(grads: Outputs) -> Outputs:
        grad_a, grad_h = pick("discretize_diag_pullback", dtype, a)(a, h, method, alpha, grads)
        return grad_a, grad_h if prewarp is None else slope * grad_h

    return pick("discretize_diag", dtype, a)(a, h, method, alpha), pullback


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
