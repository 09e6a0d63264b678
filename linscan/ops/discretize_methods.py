"""The methods of `discretize`: their options, and what each does to one step's ``X = dt A`` and ``Y = dt B``.

Every method is a function of X and Y alone, so the dense and the diagonal ops check their options here, form X and Y,
and share one chain rule. A dense map takes X (…, N, N) and Y (…, N, M) in float64 or complex128 with equal leading
axes, and returns its outputs and their pullback ``(grads) -> (grad_X, grad_Y)``.
"""

from collections.abc import Callable

import numpy as np

from linscan import _arrays
from linscan._arrays import Array, namespace
from linscan.ops.expm import conj_transpose, expm, expm_adjoint, unit_scale

METHODS = ("zoh", "foh", "bilinear", "gbt", "euler", "backward_euler", "impulse", "zoh_euler")
_ALPHA = {"bilinear": 0.5, "euler": 0.0, "backward_euler": 1.0}

Outputs = tuple[Array, ...]
Pullback = Callable[[Outputs], tuple[Array, Array]]


def check_options(who: str, method: str, alpha: float | None, prewarp: float | None) -> float | None:
    """The implicit weight of the method (None for the exponential ones), or a ValueError about its options."""
    _arrays.check_choice(who, "method", method, METHODS)
    if (alpha is None) == (method == "gbt"):
        raise ValueError(f"{who}: alpha is for method 'gbt', which needs it; got method {method!r} and alpha={alpha!r}")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"{who}: alpha must be between 0 and 1; got {alpha!r}")
    if prewarp is not None and (method != "bilinear" or not prewarp > 0):
        raise ValueError(
            f"{who}: prewarp is for method 'bilinear' and a positive angular frequency; "
            f"got method {method!r} and prewarp={prewarp!r}"
        )
    return alpha if alpha is not None else _ALPHA.get(method)


def step_length(who: str, dt: Array, prewarp: float | None) -> tuple[Array, Array | float]:
    """The step that the method really takes (float64), and its derivative by `dt`."""
    if dt.dtype.kind == "c":
        raise TypeError(f"{who}: dt must be real; got {dt.dtype}")
    if _arrays.host_any(dt, lambda dt: ~((dt > 0) & (dt < np.inf))):
        raise ValueError(f"{who}: dt must be positive and finite; got {dt[~((dt > 0) & (dt < np.inf))][0]}")
    dt = dt.astype(np.float64, copy=False)
    if prewarp is None:
        return dt, 1.0
    if _arrays.host_any(dt, lambda dt: prewarp * dt >= np.pi):
        raise ValueError(f"{who}: prewarp must be below the Nyquist frequency pi / dt; got {prewarp!r}")
    # The bilinear map sends s = i tan(w dt / 2) 2 / dt to z = e^(i w dt); with this step it sends i w there.
    xp = namespace(dt)
    half = prewarp * dt / 2
    return xp.tan(half) * (2 / prewarp), 1 / xp.cos(half) ** 2


def dense_map(who: str, method: str, alpha: float | None, x: Array, y: Array) -> tuple[Outputs, Pullback]:
    """Outputs and pullback of `method` at ``X = dt A``, ``Y = dt B``; `alpha` is what `check_options` returned."""
    if alpha is not None:
        return _rational(who, x, y, alpha)
    if method in ("zoh", "foh"):
        return _hold(x, y, ramp=method == "foh")
    return _exponential(x, y, after=method == "impulse")


def _rational(who: str, x: Array, y: Array, alpha: float) -> tuple[Outputs, Pullback]:
    """``M Ā = 1 + (1 - alpha) X`` and ``M B̄ = Y`` with ``M = 1 - alpha X``."""
    xp = namespace(x)
    n = x.shape[-1]
    eye = xp.eye(n, dtype=x.dtype)
    m = eye - alpha * x
    try:
        solution = xp.linalg.solve(m, xp.concatenate([eye + (1 - alpha) * x, y], axis=-1))
        a_bar, b_bar = solution[..., :n], solution[..., n:]
        # alpha Ā + 1 - alpha is M⁻¹; M is only known to eps (1 + alpha |X|), entry by entry.
        doubt = abs(alpha * a_bar + (1 - alpha) * eye) @ (eye.real + alpha * abs(x))
        singular = _arrays.host_any(doubt.sum(axis=-1) > 2.0**50)
    except np.linalg.LinAlgError:
        singular = True
    if singular:
        raise ValueError(
            f"{who}: 1 - {alpha:g} dt A is singular: A has an eigenvalue at {1 / alpha:g} / dt; "
            "use another dt, or an exponential method such as 'zoh'"
        )

    def pullback(grads: Outputs) -> tuple[Array, Array]:
        # M dĀ = dX ((1 - alpha) + alpha Ā) and M dB̄ = dY + alpha dX B̄.
        solved = xp.linalg.solve(conj_transpose(m), xp.concatenate(grads, axis=-1))
        grad_a, grad_y = solved[..., :n], solved[..., n:]
        inner = grad_a @ conj_transpose(a_bar) + grad_y @ conj_transpose(b_bar)
        return (1 - alpha) * grad_a + alpha * inner, grad_y

    return (a_bar, b_bar), pullback


def _hold(x: Array, y: Array, ramp: bool) -> tuple[Outputs, Pullback]:
    """``Ā = e^X`` and the input held over the step (zoh), or running straight to its new value (foh, if `ramp`)."""
    # exp of [[X, Y, 0], [0, 0, 1], [0, 0, 0]] has the top row e^X, phi1(X) Y, phi2(X) Y, also for a singular X.
    xp = namespace(x)
    n, m = y.shape[-2:]
    scale = unit_scale(y)
    generator = xp.zeros((*x.shape[:-2], n + m * (1 + ramp), n + m * (1 + ramp)), x.dtype)
    generator[..., :n, :n] = x
    generator[..., :n, n : n + m] = y * scale
    if ramp:
        generator[..., n : n + m, n + m :] = xp.eye(m)
    top = expm(generator)[..., :n, :]
    a_bar, held, ramped = top[..., :n], top[..., n : n + m] / scale, top[..., n + m :] / scale

    def pullback(grads: Outputs) -> tuple[Array, Array]:
        # foh gives B̄ = phi2(X) Y and B_prev = phi1(X) Y - phi2(X) Y.
        grad_a, grad_b, *grad_prev = grads
        blocks = [grad_b] if not ramp else [grad_prev[0], grad_b - grad_prev[0]]
        grad = xp.zeros_like(generator)
        grad[..., :n, :] = xp.concatenate([grad_a, *(block / scale for block in blocks)], axis=-1)
        grad = expm_adjoint(generator, grad)
        return grad[..., :n, :n], grad[..., :n, n : n + m] * scale

    return ((a_bar, ramped, held - ramped) if ramp else (a_bar, held)), pullback


def _exponential(x: Array, y: Array, after: bool) -> tuple[Outputs, Pullback]:
    """``Ā = e^X`` and ``B̄ = Y`` (zoh_euler), or ``B̄ = Ā Y`` (impulse, if `after`)."""
    a_bar = expm(x)

    def pullback(grads: Outputs) -> tuple[Array, Array]:
        grad_a, grad_b = grads
        if after:
            grad_a, grad_b = grad_a + grad_b @ conj_transpose(y), conj_transpose(a_bar) @ grad_b
        return expm_adjoint(x, grad_a), grad_b

    return (a_bar, a_bar @ y if after else y), pullback
