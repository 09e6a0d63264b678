"""Nonlinear recurrences, all steps at once: Newton's method, with linear recurrences inside."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array, namespace
from linscan.engines import pick
from linscan.ops import newton_solve, rnn_shapes
from linscan.ops.cells import Cell
from linscan.ops.newton_solve import NewtonInfo
from linscan.ops.rnn_shapes import Recurrence

_WHO = "newton_scan"


def newton_scan(
    cell: str | Cell,
    x: Array,
    R: Array,
    b: Array | None = None,
    w: Array | None = None,
    h0: Array | None = None,
    *,
    reverse: bool = False,
    reset: Array | None = None,
    jacobian: str = "exact",
    damping: float | None = None,
    tol: float | None = None,
    iterations: int = 20,
    fallback: bool = True,
    workers: int | None = None,
) -> tuple[Array, Array, NewtonInfo]:
    """Nonlinear recurrence of `rnn_scan`, ``s[t] = f(x[t], R u(s[t-1]) + b, s[t-1])``, solved for all steps at once.

    Parameters
    ----------
    cell, x, R, b, w, h0, reverse, reset, workers
        As in `rnn_scan`.
    jacobian : {"exact", "quasi"}, default "exact"
        "exact" is Newton's method: Jacobians are diagonal, or S × S blocks, where the matrices are diagonal, and dense
        over a head where they are not, (S d)² numbers a step. "quasi" leaves out what couples channels: the same
        solution in more, cheaper iterations.
    damping : float, optional
        Jacobians are scaled down to row sums of at most this; 1 is a good value. More iterations where steps contract,
        but convergence in cases where products of Jacobians grow for a while.
    tol : float, optional
        A row is solved when ``|f(s[t-1]) - s[t]| <= tol (1 + |s[t]|)`` for every number of every step. None means
        64 machine epsilons of the arithmetic: 7.6e-6 in float32, 1.4e-14 in float64.
    iterations : int, default 20
        The most corrections to make.
    fallback : bool, default True
        Run rows that were not solved by `rnn_scan`'s loop. If False they keep what the iterations left.

    Returns
    -------
    h : array
        Outputs, ``(…, T, d)``.
    state : array
        The final state, ``(…, S, d)``.
    info : NewtonInfo
        ``converged``, ``iterations`` and ``residual`` of every row. Where not converged, the loop gave the result.

    Raises
    ------
    ValueError
        As in `rnn_scan`, or if `jacobian`, `damping`, `tol` or `iterations` is none.
    TypeError
        As in `rnn_scan`.

    See Also
    --------
    rnn_scan : one step after the other.
    newton_scan_vjp : the gradient.

    Notes
    -----
    An iteration is O(T) work of logarithmic depth. Iteration k makes the first k steps exact, and where the recurrence
    forgets, errors shrink quadratically everywhere: 3 to 5 iterations with contracting weights, more near the edge.
    Chaotic recurrences do not converge: their rows end in the loop. The error is the residual times the recurrence's
    own amplification of errors. A row's bits do not depend on the other rows. On the GPU the shipped cells with
    diagonal matrices leave every decision to the card; where the host takes it (other cells, `damping`), each iteration
    waits for the residual, an exception to the rule that operations do not wait.

    References
    ----------
    .. [1] Y. H. Lim et al., "Parallelizing non-linear sequential models over the sequence length", 2023,
       arXiv:2309.12252.
    .. [2] X. Gonzalez et al., "Towards scalable and stable parallelization of nonlinear RNNs", 2024, arXiv:2407.19115.
    .. [3] F. Danieli et al., "ParaRNN: unlocking parallel training of nonlinear RNNs for large language models", 2025,
       arXiv:2510.21450.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import newton_scan, rnn_scan
    >>> rng = np.random.default_rng(0)
    >>> x, R = rng.standard_normal((500, 3, 4)), rng.uniform(-0.5, 0.5, (3, 4))
    >>> h, state, info = newton_scan("para_gru", x, R)
    >>> bool(info.converged), int(info.iterations)
    (True, 4)
    >>> bool(abs(h - rnn_scan("para_gru", x, R)[0]).max() < 1e-13)
    True
    """
    r = _forwards(rnn_shapes.prepare(_WHO, cell, x, R, b, w, h0, reset), reverse)
    states, info = _run(r, _settings(r, jacobian, damping, tol, iterations), fallback, workers)
    return *_outputs(r, states, reverse), info


def _settings(r: Recurrence, jacobian: str, damping: float | None, tol: float | None, limit: int) -> dict[str, Any]:
    """The options, checked, as `newton_solve.iterate` takes them."""
    _arrays.check_choice(_WHO, "jacobian", jacobian, ("exact", "quasi"))
    for name, value in (("damping", damping), ("tol", tol)):
        if value is not None and not value > 0:
            raise ValueError(f"{_WHO}: {name} must be positive; got {value!r}")
    tol = 64 * float(np.finfo(r.R.dtype).eps) if tol is None else float(tol)
    limit = _arrays.check_count(_WHO, "iterations", limit)
    return {"quasi": jacobian == "quasi", "damping": damping, "tol": tol, "limit": limit}


def _run(r: Recurrence, settings: dict[str, Any], fallback: bool, workers: int | None) -> tuple[Array, NewtonInfo]:
    """The states after each step and what happened; rows not solved are run by the loop."""
    with np.errstate(all="ignore"):  # a diverging row overflows before it is given up
        solver = pick("newton_scan", r.x.dtype, r.x)
        states, *found = solver(r, _by_arrays, **settings, fallback=fallback, workers=workers)
    return states, NewtonInfo(*found)


def _by_arrays(r: Recurrence, *, fallback: bool, workers: int | None, **settings: Any) -> tuple[Array, ...]:
    """`newton_solve.iterate`, and then the loop for rows that did not converge."""
    states, converged, *found = newton_solve.iterate(r, **settings, workers=workers)
    if fallback and not bool(converged.all()):
        rows = namespace(r.x).nonzero(~converged.reshape(-1))[0]
        flat = states.reshape(converged.size, *states.shape[-3:])
        run = pick("rnn_scan", r.x.dtype, r.x)
        flat[rows] = run(_rows(r, rows), reverse=False, keep=True, workers=workers)[2][0]
        states = flat.reshape(states.shape)
    return states, converged, *found


def _forwards(r: Recurrence, reverse: bool) -> Recurrence:
    """The recurrence with time turned around if it runs backwards."""
    if not reverse:
        return r
    reset = None if r.reset is None else r.reset[..., ::-1]
    return r._replace(x=r.x[..., ::-1, :, :], reset=reset)


def _rows(r: Recurrence, rows: Array) -> Recurrence:
    """Some rows of the flattened leading axes."""
    xp, lead = namespace(r.x), r.x.shape[:-3]

    def chosen(x: Array | None, core: int) -> Array | None:
        if x is None:
            return None
        shape = x.shape[x.ndim - core :]
        return xp.broadcast_to(x, (*lead, *shape)).reshape(-1, *shape)[rows]

    R = chosen(r.R, 2 if r.cell.diagonal else 3)
    b, w, s0 = (chosen(v, 2) for v in (r.b, r.w, r.s0))
    return Recurrence(r.cell, chosen(r.x, 3), R, b, w, s0, r.start, chosen(r.reset, 1))


def _outputs(r: Recurrence, states: Array, reverse: bool) -> tuple[Array, Array]:
    """Outputs in the order of the caller's times, and the final state."""
    xp, h = namespace(states), states[..., 0, :]
    last = states[..., -1, :, :] if states.shape[-3] else r.s0
    return xp.ascontiguousarray(h[..., ::-1, :] if reverse else h, dtype=r.x.dtype), xp.array(last, r.x.dtype)


def newton_scan_vjp(
    cell: str | Cell,
    x: Array,
    R: Array,
    b: Array | None = None,
    w: Array | None = None,
    h0: Array | None = None,
    *,
    reverse: bool = False,
    reset: Array | None = None,
    jacobian: str = "exact",
    damping: float | None = None,
    tol: float | None = None,
    iterations: int = 20,
    fallback: bool = True,
    workers: int | None = None,
) -> tuple[tuple[Array, Array, NewtonInfo], Callable[..., tuple[Array | None, ...]]]:
    """`newton_scan` and its pullback.

    Parameters
    ----------
    cell, x, R, b, w, h0, reverse, reset, jacobian, damping, tol, iterations, fallback, workers
        As in `newton_scan`.

    Returns
    -------
    output : tuple
        ``(h, state, info)``, what `newton_scan` returns.
    pullback : callable
        ``pullback(dh, dstate)`` returns ``(dx, dR, db, dw, dh0)``, each of its argument's shape and dtype (None where
        the argument was None). None for a cotangent means zero.

    Raises
    ------
    ValueError, TypeError
        As in `newton_scan`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    newton_scan : the recurrence.

    Notes
    -----
    No iterations: the gradient of a solution is one linear recurrence backwards, with the exact Jacobians whatever
    `jacobian` and `damping` are. Retains the arguments and the states.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import newton_scan_vjp
    >>> (h, state, info), pullback = newton_scan_vjp("elman", np.ones((3, 1, 1)), np.full((1, 1, 1), 0.5))
    >>> dx, dR, db, dw, dh0 = pullback(np.array([[0.0], [0.0], [1.0]]))
    >>> dR
    array([[[0.19432008]]])
    """
    # By the implicit function theorem on F(s) = f(s before) - s = 0: with λ[t] = ∂L/∂s[t] over every path,
    #   λ[t] = (dh[t], 0, …) + J[t+1]ᵀ λ[t+1],
    # the transposed linear system of a Newton step; then each step's own pullback at λ[t], all steps at once.
    r = _forwards(rnn_shapes.prepare("newton_scan_vjp", cell, x, R, b, w, h0, reset), reverse)
    states, info = _run(r, _settings(r, jacobian, damping, tol, iterations), fallback, workers)
    h, last = _outputs(r, states, reverse)
    run = pick("newton_scan_pullback", r.x.dtype, r.x)

    def pullback(dh: Array | None = None, dstate: Array | None = None) -> tuple[Array | None, ...]:
        given: Array = _arrays.cotangent("newton_scan_vjp", "dh", dh, h)
        dstate = _arrays.cotangent("newton_scan_vjp", "dstate", dstate, last)
        with np.errstate(all="ignore"):
            given = given[..., ::-1, :] if reverse else given
            dx, *rest = run(r, newton_solve.pulled, states, given, dstate, workers=workers)
        dx = dx[..., ::-1, :, :] if reverse else dx
        return rnn_shapes.gradients(r, states, (dx, *rest), (x, R, b, w, h0), False)

    return (h, last, info), pullback
