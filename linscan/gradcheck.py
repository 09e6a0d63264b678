"""Check a hand-written gradient against finite differences."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

_EPS = float(np.finfo(np.float64).eps)


def check_vjp(
    f_vjp: Callable[..., Any],
    *args: Any,
    method: str = "central",
    directions: int = 3,
    rtol: float = 1e-7,
    seed: int = 0,
    **options: Any,
) -> dict[str, float]:
    """Check that the pullback of `f_vjp` is the gradient of what it computes, along random directions.

    Parameters
    ----------
    f_vjp : callable
        ``f_vjp(*args, **options)`` returns ``(output, pullback)`` or ``((output, ...), pullback)``; the pullback takes
        one cotangent per output and returns one gradient per argument.
    *args : array_like or None
        The point to check at: float64 or complex128 arrays, floats or None.
    method : {"central", "complex"}, default "central"
        Fourth-order central differences, or the complex step, which has no cancellation but needs real arguments and
        a function that is analytic in them.
    directions : int, default 3
        Random directions per argument.
    rtol : float, default 1e-7
        Allowed error, relative to the root-mean-square size of a directional derivative. What finite differences must
        lose to rounding is allowed on top, computed from the size of the outputs and the step.
    seed : int, default 0
        Of the random directions and cotangents.
    **options
        Passed on to `f_vjp`.

    Returns
    -------
    dict of str to float
        For each argument its largest relative error, at most 1 in units of what is allowed.

    Raises
    ------
    AssertionError
        If a gradient is wrong, missing, or not of its argument's shape and dtype; it names the argument and the error.
    ValueError
        For an unknown `method`, or complex arguments with the complex step.
    TypeError
        If an argument is not float64 or complex128.

    Notes
    -----
    With cotangents g for the outputs y, the scalar checked is ``L = Re sum(conj(g) y)``, whose derivative along v is
    ``Re sum(conj(grad) v)`` in the convention ``grad = ∂L/∂Re + i ∂L/∂Im``. Four evaluations per direction (one with
    the complex step).

    References
    ----------
    .. [1] W. Squire and G. Trapp, "Using complex variables to estimate derivatives of real functions", SIAM Review
       40(1), 1998, doi:10.1137/S003614459631241X.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import check_vjp, scan_vjp
    >>> a, b = np.random.default_rng(0).uniform(size=(2, 5))
    >>> errors = check_vjp(scan_vjp, a, b, 1.0)
    >>> sorted(errors)
    ['a', 'b', 'h0']
    """
    if method not in ("central", "complex"):
        raise ValueError(f"check_vjp: method must be one of 'central', 'complex'; got {method!r}")
    rng = np.random.default_rng(seed)
    point = [_as_point(i, x) for i, x in enumerate(args)]
    names = _names(f_vjp, len(point))
    outputs, pullback = _call(f_vjp, point, options)
    cotangents = [_direction(rng, y, 1.0) for y in outputs]
    grads = pullback(*cotangents)
    grads = grads if isinstance(grads, tuple) else (grads,)
    if len(grads) != len(point):
        raise AssertionError(f"check_vjp: the pullback returned {len(grads)} gradients for {len(point)} arguments")
    _check_zero_cotangents(pullback, outputs, cotangents, grads, names)
    worst = {}
    for i, (name, x, grad) in enumerate(zip(names, point, grads, strict=True)):
        if x is None:
            if grad is not None:
                raise AssertionError(f"check_vjp: argument {name!r} is None but got a gradient")
            continue
        grad = _as_gradient(name, x, grad)
        worst[name] = 0.0
        for _ in range(directions):
            v = _direction(rng, x, float(np.sqrt(np.mean(np.abs(x) ** 2))) or 1.0 if x.size else 1.0)
            exact = float(np.sum(np.real(np.conj(grad) * v)))
            moved = lambda t, i=i, x=x, v=v: [*point[:i], x + t * v, *point[i + 1 :]]  # noqa: E731
            found, noise = _difference(f_vjp, moved, cotangents, options, method)
            allowed = rtol * float(np.linalg.norm(np.real(np.conj(grad) * v))) + noise
            error = abs(found - exact) / allowed if allowed else float(found != exact)
            worst[name] = max(worst[name], error)
            if not error <= 1:
                raise AssertionError(
                    f"check_vjp: the gradient of argument {name!r} is wrong: along a random direction the derivative "
                    f"is {found:.9g}, the pullback says {exact:.9g} (off by {abs(found - exact):.3g}, "
                    f"allowed {allowed:.3g})"
                )
    return worst


def _as_point(i: int, x: Any) -> np.ndarray | None:
    if x is None:
        return None
    x = np.asarray(x)
    if x.dtype not in (np.float64, np.complex128):
        raise TypeError(f"check_vjp: argument {i} must be float64 or complex128; got {x.dtype}")
    return x


def _names(f_vjp: Callable[..., Any], count: int) -> list[str]:
    try:
        names = [p.name for p in inspect.signature(f_vjp).parameters.values() if p.kind != p.KEYWORD_ONLY]
    except (TypeError, ValueError):
        names = []
    return (names + [f"argument {i}" for i in range(len(names), count)])[:count]


def _call(f_vjp: Callable[..., Any], point: list[Any], options: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    output, pullback = f_vjp(*point, **options)
    return (output if isinstance(output, tuple) else (output,)), pullback


def _direction(rng: np.random.Generator, like: Any, scale: float) -> np.ndarray:
    v = rng.standard_normal(np.shape(like))
    if np.iscomplexobj(like):
        v = v + 1j * rng.standard_normal(np.shape(like))
    return np.asarray(scale * v)


def _as_gradient(name: str, x: np.ndarray, grad: Any) -> np.ndarray:
    if grad is None:
        raise AssertionError(f"check_vjp: argument {name!r} got no gradient")
    grad = np.asarray(grad)
    if grad.shape != x.shape or grad.dtype != x.dtype:
        raise AssertionError(
            f"check_vjp: the gradient of argument {name!r} has shape {grad.shape} and dtype {grad.dtype}; "
            f"the argument has {x.shape} and {x.dtype}"
        )
    return grad


def _check_zero_cotangents(pullback: Any, outputs: Any, cotangents: Any, grads: Any, names: list[str]) -> None:
    """None stands for a zero cotangent, and the pullback is linear: the outputs' shares must add up."""
    if len(outputs) == 1:
        shares = [pullback(None), grads]
    else:
        alone = [[g if i == j else None for j, g in enumerate(cotangents)] for i in range(len(outputs))]
        shares = [pullback(*c) for c in alone]
    shares = [s if isinstance(s, tuple) else (s,) for s in shares]
    for i, (name, grad) in enumerate(zip(names, grads, strict=True)):
        if grad is None:
            continue
        total = sum(np.asarray(s[i]) for s in shares)
        size = sum(float(np.linalg.norm(np.ravel(s[i]))) for s in shares)
        if not np.linalg.norm(np.ravel(total - grad)) <= 1e3 * _EPS * size:
            raise AssertionError(f"check_vjp: the gradient of argument {name!r} is not linear in the cotangents")


def _difference(f_vjp: Any, moved: Any, cotangents: Any, options: Any, method: str) -> tuple[float, float]:
    """The derivative of L at t = 0, and the rounding error it may carry."""

    def pairing(t: Any) -> tuple[Any, float]:
        outputs, _ = _call(f_vjp, moved(t), options)
        total = sum(np.sum(np.conj(g) * y) for g, y in zip(cotangents, outputs, strict=True))
        size = sum(float(np.sum(np.abs(g) * np.abs(y))) for g, y in zip(cotangents, outputs, strict=True))
        return total, size

    if method == "complex":
        if any(np.iscomplexobj(g) for g in cotangents):
            raise ValueError("check_vjp: the complex step needs real arguments and outputs; use method='central'")
        step = 1e-30
        value, _ = pairing(1j * step)
        return float(np.imag(value)) / step, 1e2 * _EPS * abs(float(np.imag(value))) / step
    step = _EPS**0.2  # balances the truncation error step**4 against the rounding error eps / step
    values = {k: pairing(k * step) for k in (-2, -1, 1, 2)}
    real = {k: float(np.real(value)) for k, (value, _) in values.items()}
    found = (8 * (real[1] - real[-1]) - (real[2] - real[-2])) / (12 * step)
    return found, 10 * _EPS * max(size for _, size in values.values()) / step
