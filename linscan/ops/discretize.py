r"""Continuous state-space models to discrete ones: ``x' = A x + B u`` to ``x[t] = Ā x[t-1] + B̄ u[t]``.

The methods themselves are in `linscan.ops.discretize_methods`, the diagonal form in `linscan.ops.discretize_diag`, the
way back in `linscan.ops.undiscretize`.
"""

from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.ops.discretize_methods import Outputs, Pullback, check_options, dense_map, step_length


def discretize(
    A: Array,
    B: Array,
    dt: Array,
    method: str = "zoh",
    *,
    alpha: float | None = None,
    prewarp: float | None = None,
) -> Outputs:
    r"""Discretise ``x' = A x + B u`` with step `dt`: ``x[t] = Ā x[t-1] + B̄ u[t]``.

    Parameters
    ----------
    A : array_like, (..., N, N)
        State matrix, real or complex; it may be singular.
    B : array_like, (..., N, M)
        Input matrix for M inputs.
    dt : array_like
        Positive step; one number, or an array that broadcasts against the leading axes of `A` and `B`.
    method : str, default "zoh"
        With ``X = dt A`` and ``Y = dt B``:

        ==================== ========================== ==============================================================
        method               Ā                          B̄
        ==================== ========================== ==============================================================
        ``"zoh"``            e\ :sup:`X`                φ₁(X) Y: exact for an input constant over the step
        ``"foh"``            e\ :sup:`X`                φ₂(X) Y: exact for an input linear over the step; see Returns
        ``"bilinear"``       (1 − X/2)⁻¹ (1 + X/2)      (1 − X/2)⁻¹ Y: trapezoidal rule (Tustin)
        ``"gbt"``            (1 − αX)⁻¹ (1 + (1−α)X)    (1 − αX)⁻¹ Y
        ``"euler"``          1 + X                      Y: gbt with α = 0; unstable for large steps
        ``"backward_euler"`` (1 − X)⁻¹                  (1 − X)⁻¹ Y: gbt with α = 1
        ``"impulse"``        e\ :sup:`X`                Ā Y: impulse invariance in SciPy's recurrence
        ``"zoh_euler"``      e\ :sup:`X`                Y: as Mamba does; impulse invariance in this recurrence
        ==================== ========================== ==============================================================

        where ``φ₁(z) = (eᶻ − 1)/z`` and ``φ₂(z) = (φ₁(z) − 1)/z``.
    alpha : float, optional
        The weight α in [0, 1] of ``"gbt"``, which needs it.
    prewarp : float, optional
        For ``"bilinear"``: angular frequency (radians per unit of `dt`) at which the discrete frequency response equals
        the continuous one. It must be below ``pi / dt``.

    Returns
    -------
    A_bar : array, (..., N, N)
        Ā, with the broadcast leading axes of `A`, `B` and `dt`.
    B_bar : array, (..., N, M)
        B̄, the weight of the current input.
    B_prev : array, (..., N, M)
        For ``"foh"`` only: the weight of the input one step before, ``x[t] = Ā x[t-1] + B̄ u[t] + B_prev u[t-1]``.

    Raises
    ------
    ValueError
        For shapes that do not fit, a `dt` that is not positive and finite, an unknown method or option, or a singular
        ``1 - alpha dt A``. (On the GPU values are not looked at: the result is then NaN or inf.)
    TypeError
        For an unsupported dtype, a complex `dt`, or host and GPU arrays mixed.

    See Also
    --------
    discretize_diag : the same for a diagonal A.
    discretize_vjp : the gradient.
    undiscretize : the inverse.
    scipy.signal.cont2discrete : one system at a time.

    Notes
    -----
    Against SciPy, whose recurrence is ``x[k+1] = Ā x[k] + B̄ u[k]``, ``y[k] = C̄ x[k] + D̄ u[k]``: Ā and B̄ are the same
    matrices for every method but ``"foh"``. ``"gbt"`` and its special cases there also change
    ``C̄ = C (1 - alpha X)⁻¹`` and ``D̄ = D + alpha C B̄``, impulse ``D̄ = C Y``; state-space layers leave C and D alone.
    For ``"foh"`` SciPy shifts the state to keep to one input: its matrices are ``B_prev + Ā B̄`` and ``D̄ = D + C B̄``.
    Here the state keeps its meaning, and one step is what `scipy.signal.lsim` does with linear interpolation.

    Arithmetic is in double precision, the result in the promoted dtype of the arguments. Exponentials are taken of
    ``[[X, Y], [0, 0]]``, so zero eigenvalues need no care. O((N + M)^3) per system.

    References
    ----------
    .. [1] C. F. Van Loan, "Computing integrals involving the matrix exponential", IEEE Trans. Automatic Control 23(3),
       1978, doi:10.1109/TAC.1978.1101743.
    .. [2] G. Zhang, X. Chen, T. Chen, "Digital redesign via the generalised bilinear transformation", Int. J. Control
       82(4), 2009, doi:10.1080/00207170802247728.

    Examples
    --------
    A double integrator (position and speed under a force):

    >>> from linscan import discretize
    >>> A_bar, B_bar = discretize([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], 0.5)
    >>> A_bar
    array([[1. , 0.5],
           [0. , 1. ]])
    >>> B_bar
    array([[0.125],
           [0.5  ]])
    """
    return _discretize("discretize", A, B, dt, method, alpha, prewarp)[0]


def _discretize(
    who: str, A: Any, B: Any, dt: Any, method: str, alpha: float | None, prewarp: float | None
) -> tuple[Outputs, Pullback]:
    """The outputs, and a pullback to A, B and dt that expects and returns double precision."""
    alpha = check_options(who, method, alpha, prewarp)
    A, B, dt, dtype, work = prepare(who, A, B, dt)
    h, slope = step_length(who, dt, prewarp)
    step = h[..., None, None]
    a, b = A.astype(work), B.astype(work)
    lead = _arrays.broadcast_shapes(who, A=A.shape[:-2], B=B.shape[:-2], dt=dt.shape)
    xp = _arrays.namespace(A)
    x, y = xp.broadcast_to(step * a, (*lead, *A.shape[-2:])), xp.broadcast_to(step * b, (*lead, *B.shape[-2:]))
    outputs, back = dense_map(who, method, alpha, x, y)

    def pullback(grads: Outputs) -> tuple[Array, ...]:
        # X = h A and Y = h B with h = h(dt): the gradient by h is the projection of those by X and Y on A and B.
        grad_x, grad_y = back(tuple(grad.astype(work) for grad in grads))
        grad_h = (a.conj() * grad_x).real.sum(axis=(-2, -1)) + (b.conj() * grad_y).real.sum(axis=(-2, -1))
        return step * grad_x, step * grad_y, slope * grad_h

    return tuple(out.astype(dtype) for out in outputs), pullback


def prepare(who: str, A: Any, B: Any, dt: Any, names: tuple[str, str] = ("A", "B")) -> tuple[Any, ...]:
    """The arguments as arrays of fitting shapes, the result's dtype, and the double precision to compute in."""
    xp, A, B, dt = _arrays.take(who, **{names[0]: A, names[1]: B, "dt": dt})
    dtype = _arrays.result_dtype(who, **{names[0]: A, names[1]: B, "dt": dt})
    A, B, dt = xp.asarray(A), xp.asarray(B), xp.asarray(dt)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2] or A.shape[-1] == 0:
        raise ValueError(f"{who}: {names[0]} must have shape (..., N, N); got {A.shape}")
    if B.ndim < 2 or B.shape[-2] != A.shape[-1]:
        raise ValueError(f"{who}: {names[1]} must have shape (..., {A.shape[-1]}, M); got {B.shape}")
    return A, B, dt, dtype, np.dtype(np.complex128 if dtype.kind == "c" else np.float64)


def discretize_vjp(
    A: Array,
    B: Array,
    dt: Array,
    method: str = "zoh",
    *,
    alpha: float | None = None,
    prewarp: float | None = None,
) -> tuple[Outputs, Any]:
    """`discretize` and its pullback.

    Parameters
    ----------
    A, B, dt, method, alpha, prewarp
        As in `discretize`.

    Returns
    -------
    outputs : tuple of array
        What `discretize` returns: ``(A_bar, B_bar)``, for ``"foh"`` ``(A_bar, B_bar, B_prev)``.
    pullback : callable
        ``pullback(dA_bar, dB_bar)``, for ``"foh"`` ``pullback(dA_bar, dB_bar, dB_prev)``, returns ``(dA, dB, ddt)``,
        each of its argument's shape and dtype. A cotangent has its output's shape; None means zero.

    Raises
    ------
    ValueError, TypeError
        As in `discretize`; the pullback raises ValueError for a cotangent of the wrong shape.

    See Also
    --------
    discretize : the forward.

    Notes
    -----
    The gradient of a matrix exponential is one exponential of twice the size (its Fréchet derivative [1]_); that of
    the other methods one solve. The pullback retains the outputs and the arguments.

    References
    ----------
    .. [1] I. Najfeld and T. F. Havel, "Derivatives of the matrix exponential and their computation", Advances in
       Applied Mathematics 16(3), 1995, doi:10.1006/aama.1995.1017.

    Examples
    --------
    How the state after one step of a decay depends on the step:

    >>> from linscan import discretize_vjp
    >>> (A_bar, B_bar), pullback = discretize_vjp([[-2.0]], [[1.0]], 0.5)
    >>> dA, dB, ddt = pullback([[1.0]], None)
    >>> round(float(ddt), 6)  # d e^(-2 dt) / d dt
    -0.735759
    """
    who = "discretize_vjp"
    _, A, B, dt = _arrays.take(who, A=A, B=B, dt=dt)
    outputs, back = _discretize(who, A, B, dt, method, alpha, prewarp)
    names = ("dA_bar", "dB_bar", "dB_prev")

    def pullback(*grads: Array | None) -> tuple[Array | None, ...]:
        if len(grads) != len(outputs):
            raise TypeError(f"{who}: the pullback takes {len(outputs)} cotangents; got {len(grads)}")
        taken = map(_arrays.cotangent, [who] * len(grads), names, grads, outputs)
        return tuple(map(_arrays.grad_like, back(tuple(taken)), (A, B, dt)))

    return outputs, pullback
