"""Discrete state-space models back to continuous ones."""

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.ops.discretize import prepare
from linscan.ops.discretize_methods import check_options, dense_map, step_length
from linscan.ops.expm import expm, logm


def undiscretize(
    A_bar: Array,
    B_bar: Array,
    dt: Array,
    method: str = "zoh",
    *,
    alpha: float | None = None,
    prewarp: float | None = None,
) -> tuple[Array, Array]:
    r"""Recover the A and B that `discretize` turned into ``Ā`` and ``B̄``.

    Parameters
    ----------
    A_bar : array_like, (..., N, N)
        Discrete state matrix.
    B_bar : array_like, (..., N, M)
        Discrete input matrix, the weight of ``u[t]``. (For ``"foh"`` it determines the one of ``u[t-1]``.)
    dt : array_like
        Positive step; one number, or an array that broadcasts against the leading axes.
    method, alpha, prewarp
        As in `discretize`.

    Returns
    -------
    A : array, (..., N, N)
        Continuous state matrix, with the broadcast leading axes of the arguments. For the exponential methods it is
        the principal logarithm over `dt`: of all systems with these samples, the one without frequencies above
        ``pi / dt``.
    B : array, (..., N, M)
        Continuous input matrix.

    Raises
    ------
    ValueError
        As `discretize`, and if there is no such system: for the exponential methods if an eigenvalue of Ā is zero or
        negative, for the others if one is ``(alpha - 1) / alpha``. (On the GPU the result is then NaN or meaningless.)
    TypeError
        As in `discretize`.

    See Also
    --------
    discretize : the forward.

    Notes
    -----
    ``X = dt A`` is ``log Ā`` or ``(alpha Ā + 1 - alpha)⁻¹ (Ā - 1)``; ``dt B`` solves the linear system that the method
    applied to the identity gives. The logarithm is taken by inverse scaling and squaring. It is as ill-conditioned as
    Ā: modes that died out within one step cannot be told apart any more.

    A tool for identified models; models are trained in continuous parameters, so it has no ``_vjp``. Differentiate
    `discretize` instead.

    References
    ----------
    .. [1] N. J. Higham, "Functions of Matrices: Theory and Computation", SIAM, 2008, chapter 11,
       doi:10.1137/1.9780898717778.

    Examples
    --------
    >>> from linscan import discretize, undiscretize
    >>> A_bar, B_bar = discretize([[0.0, 1.0], [-4.0, -1.0]], [[0.0], [1.0]], 0.1)
    >>> A, B = undiscretize(A_bar, B_bar, 0.1)
    >>> (abs(A - [[0.0, 1.0], [-4.0, -1.0]]) < 1e-13).all(), (abs(B - [[0.0], [1.0]]) < 1e-13).all()
    (np.True_, np.True_)
    """
    who = "undiscretize"
    alpha = check_options(who, method, alpha, prewarp)
    A_bar, B_bar, dt, dtype, work = prepare(who, A_bar, B_bar, dt, names=("A_bar", "B_bar"))
    h, _ = step_length(who, dt, prewarp)
    lead = _arrays.broadcast_shapes(who, A_bar=A_bar.shape[:-2], B_bar=B_bar.shape[:-2], dt=dt.shape)
    xp = _arrays.namespace(A_bar)
    a_bar = xp.broadcast_to(A_bar.astype(work), (*lead, *A_bar.shape[-2:]))
    b_bar = xp.broadcast_to(B_bar.astype(work), (*lead, *B_bar.shape[-2:]))
    x = _logarithm(who, method, a_bar) if alpha is None else _rational(who, alpha, a_bar)
    eye = xp.broadcast_to(xp.eye(x.shape[-1], dtype=work), x.shape)
    weight = dense_map(who, method, alpha, x, eye)[0][1]
    y = xp.linalg.solve(weight, b_bar)
    step = h[..., None, None]
    return (x / step).astype(dtype), (y / step).astype(dtype)


def _logarithm(who: str, method: str, a_bar: Array) -> Array:
    """``log Ā``, checked by taking the exponential again."""
    try:
        with np.errstate(all="ignore"):  # without a logarithm the square roots wander off
            x = logm(a_bar)
            error = abs(expm(x) - a_bar).sum(axis=(-2, -1))
        lost = _arrays.host_any(~(error <= 1e-6 * abs(a_bar).sum(axis=(-2, -1))))
    except np.linalg.LinAlgError:
        lost = True
    if lost:
        raise ValueError(
            f"{who}: A_bar has no principal logarithm (an eigenvalue is zero or negative, or too close to it), so no "
            f"system gives it by {method!r}; it needs a smaller dt, or another method such as 'bilinear'"
        )
    return x


def _rational(who: str, alpha: float, a_bar: Array) -> Array:
    """The X whose ``(1 - alpha X)⁻¹ (1 + (1 - alpha) X)`` is Ā."""
    xp = _arrays.namespace(a_bar)
    eye = xp.eye(a_bar.shape[-1], dtype=a_bar.dtype)
    try:
        x = xp.linalg.solve(alpha * a_bar + (1 - alpha) * eye, a_bar - eye)
        singular = _arrays.host_any(abs(x) > 2.0**48)
    except np.linalg.LinAlgError:
        singular = True
    if singular:
        raise ValueError(
            f"{who}: A_bar has the eigenvalue {(alpha - 1) / alpha:g}, which this method gives no continuous eigenvalue"
        )
    return x
