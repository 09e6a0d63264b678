"""Linear recurrences on a grid: matrix states that travel along its edges, in two directions at once (pLSTM)."""

from collections.abc import Callable, Sequence
from typing import Any

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.in_kind import in_kind

_AXES = {"q": 1, "k": 1, "v": 1, "transition": 2, "source": 1, "mark": 1, "direct": 0}  # axes after those of the grid


@in_kind
def grid_scan(
    q: Array,
    k: Array,
    v: Array,
    transition: Array,
    source: Array,
    mark: Array,
    direct: Array | None = None,
    r0: Array | None = None,
    d0: Array | None = None,
    *,
    reverse: Sequence[bool] = (False, False),
    workers: int | None = None,
) -> tuple[Array, Array, Array]:
    r"""Two-dimensional linear recurrence with matrix states on the edges of a grid.

    Every cell (x, y) takes the states ``R[x-1, y]`` and ``D[x, y-1]``, each K by V, of its two incoming edges, gives
    ``o = qᵀ (mark₀ R[x-1, y] + mark₁ D[x, y-1]) + direct (q·k) v`` and sends out
    ``(R, D)[x, y] = transition (R[x-1, y], D[x, y-1]) + source (k vᵀ)``, R on in x and D on in y.

    Parameters
    ----------
    q, k : array_like
        Queries and keys (…, X, Y, K). Real or complex; leading axes (batch, heads) broadcast over all arguments.
    v : array_like
        Values (…, X, Y, V).
    transition : array_like
        (…, X, Y, 2, 2): ``[[R to R, D to R], [R to D, D to D]]`` at each cell.
    source, mark : array_like
        (…, X, Y, 2): how strongly ``k vᵀ`` enters (R, D), and how strongly a query reads the incoming (R, D).
    direct : array_like, optional
        (…, X, Y): how strongly a query reads its own cell. None is not at all.
    r0, d0 : array_like, optional
        States that enter the grid: r0 (…, Y, K, V) before the first x, d0 (…, X, K, V) before the first y. None is 0.
    reverse : pair of bool, default (False, False)
        Whether to run backwards along x and along y: four orientations. States then enter and leave at the other end.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    o : array
        (…, X, Y, V), in the promoted dtype.
    r, d : array
        The states that leave the grid, as `r0` and `d0`: those to give to the next piece along x, and along y.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.

    See Also
    --------
    cross_scan : a grid as four sequences, for any one-dimensional recurrence.

    Notes
    -----
    O(X Y K V) operations, which only ever add and multiply states: nothing is divided, and growth is the loop's. Memory
    is that of the edges crossing one line. What is stable for all paths together is not what is stable along one:

    * *P-mode*, ``[[α, α], [1 - α, 1 - α]] t`` with α in [0, 1] and ``|t| ≤ 1``: what enters a cell is shared out, and
      what an antidiagonal of cells sends out is at most what the one before sent.
    * *D-mode*, ``transition[1, 0] = 0`` (or ``[0, 1]``) and all others at most 1: there is one path between two cells,
      along one axis and then along the other.
    * Ones everywhere count all paths: ``2**(X + Y)``.

    A row's bits do not depend on the other rows or on `workers`; NaN and inf reach the cells after them in x and y.

    References
    ----------
    .. [1] K. Pöppel, R. Freinschlag, T. Schmied, W. Lin and S. Hochreiter, "pLSTM: parallelizable linear source
       transition mark networks", 2025, arXiv:2506.11997.

    Examples
    --------
    One source in the corner, passed on in P-mode: every antidiagonal adds up to what it sends.

    >>> import numpy as np
    >>> from linscan import grid_scan
    >>> one, marks = np.ones((3, 3, 1)), np.ones((3, 3, 2))
    >>> source = np.zeros((3, 3, 2))
    >>> source[0, 0] = 1
    >>> grid_scan(one, one, one, np.full((3, 3, 2, 2), 0.5), source, marks)[0][..., 0]
    array([[0.  , 1.  , 0.5 ],
           [1.  , 1.  , 0.75],
           [0.5 , 0.75, 0.75]])
    """
    given = {"q": q, "k": k, "v": v, "transition": transition, "source": source, "mark": mark, "direct": direct}
    arrays, turn = _prepare("grid_scan", given, r0, d0, reverse)
    o, r, d = pick("grid_scan", arrays[0].dtype, arrays[0])(*arrays, workers=workers)
    return turn(o, 1), turn(r, 2, "y"), turn(d, 2, "x")


def _prepare(who: str, given: dict[str, Any], r0: Any, d0: Any, reverse: Any) -> tuple[list[Any], Callable[..., Any]]:
    """All arguments of one dtype, with all axes in full and in the order of the run, and how to turn an array back."""
    xp, *taken = _arrays.take(who, **given, r0=r0, d0=d0)
    named = dict(zip([*given, "r0", "d0"], taken, strict=True))
    dtype = _arrays.result_dtype(who, **named)
    named = {name: None if x is None else xp.asarray(x, dtype) for name, x in named.items()}
    if len(reverse) != 2:
        raise ValueError(f"{who}: reverse must be a pair, for x and y; got {reverse!r}")

    def turn(x: Any, after: int, axes: str = "xy") -> Any:
        """`x` with the axes that the run goes backwards along flipped; `after` further axes follow them."""
        if x is None:
            return None
        flips = [slice(None, None, -1 if reverse["xy".index(axis)] else 1) for axis in axes]
        return x[(..., *flips, *(slice(None),) * after)]

    q, v = named["q"], named["v"]
    if min(q.ndim, v.ndim) < 3 or q.shape[-3:-1] != v.shape[-3:-1]:
        raise ValueError(f"{who}: q must have shape (…, X, Y, K) and v (…, X, Y, V); got {q.shape} and {v.shape}")
    (x, y, keys), values = q.shape[-3:], v.shape[-1]
    tails = {"q": (keys,), "k": (keys,), "v": (values,), "transition": (2, 2), "source": (2,), "mark": (2,)}
    wanted = {name: (x, y, *tails.get(name, ())) for name in given}
    wanted.update(r0=(y, keys, values), d0=(x, keys, values))
    leads = {}
    for name, array in named.items():
        if array is not None:
            n = len(wanted[name])
            wide = array.reshape((1,) * (n - array.ndim) + array.shape)
            leads[name] = wide.shape[: wide.ndim - n]
            named[name] = _arrays.broadcast_to(who, name, wide, leads[name] + wanted[name])
    lead = _arrays.broadcast_shapes(f"{who}: leading axes", **leads)
    named = {
        name: None if array is None else xp.broadcast_to(array, lead + wanted[name]) for name, array in named.items()
    }
    for name, end in (("r0", (y, keys, values)), ("d0", (x, keys, values))):
        if named[name] is None:
            named[name] = xp.broadcast_to(xp.zeros((), dtype), lead + end)
    turned = [turn(array, _AXES[name]) for name, array in named.items() if name in _AXES]
    return [*turned, turn(named["r0"], 2, "y"), turn(named["d0"], 2, "x")], turn


@in_kind
def grid_scan_vjp(
    q: Array,
    k: Array,
    v: Array,
    transition: Array,
    source: Array,
    mark: Array,
    direct: Array | None = None,
    r0: Array | None = None,
    d0: Array | None = None,
    *,
    reverse: Sequence[bool] = (False, False),
    workers: int | None = None,
) -> tuple[tuple[Array, Array, Array], Callable[..., tuple[Array | None, ...]]]:
    """`grid_scan` and its pullback.

    Parameters
    ----------
    q, k, v, transition, source, mark, direct, r0, d0, reverse, workers
        As in `grid_scan`.

    Returns
    -------
    outputs : tuple of array
        ``(o, r, d)``, what `grid_scan` returns.
    pullback : callable
        ``pullback(do, dr, dd)`` returns one gradient for each of the nine arguments, of its shape and dtype (None where
        the argument was None). A cotangent that is None, or left out, means zero.

    Raises
    ------
    ValueError, TypeError
        As in `grid_scan`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    grid_scan : the recurrence.

    Notes
    -----
    Retains the arguments and computes the states anew: on the CPU for one key channel after the other, in memory of the
    size of `v` for each thread.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import grid_scan_vjp
    >>> one, two = np.ones((2, 2, 1)), np.ones((2, 2, 2))
    >>> (o, r, d), pullback = grid_scan_vjp(one, one, one, np.full((2, 2, 2, 2), 0.5), two, two)
    >>> pullback(np.ones_like(o))[2][..., 0]
    array([[4., 1.],
           [1., 0.]])
    """
    # With ρ, δ = ∂L/∂R, ∂L/∂D at (x, y) over every path, ρ from the cell at x + 1 (or dr), δ from y + 1 (or dd),
    #   ∂L/∂(R[x-1, y], D[x, y-1]) = transitionᴴ (ρ, δ) + conj(mark) conj(q) doᵀ      which the cells before receive;
    #   dtransition[a, b] = ⟨incoming b, outgoing gradient a⟩,   dmark[b] = ⟨incoming b, conj(q) doᵀ⟩;
    #   with w = source₀* ρ + source₁* δ:   dsource[a] = ⟨k vᵀ, gradient a⟩,   dk = w conj(v),   dv = wᵀ conj(k);
    #   dq = (conj of what the marks read) do;   and the direct term's product rule.
    who, original = "grid_scan_vjp", (q, k, v, transition, source, mark, direct, r0, d0)
    given = {"q": q, "k": k, "v": v, "transition": transition, "source": source, "mark": mark, "direct": direct}
    arrays, turn = _prepare(who, given, r0, d0, reverse)
    outputs = pick("grid_scan", arrays[0].dtype, arrays[0])(*arrays, workers=workers)
    run = pick("grid_scan_pullback", arrays[0].dtype, arrays[0])
    o, r, d = turn(outputs[0], 1), turn(outputs[1], 2, "y"), turn(outputs[2], 2, "x")

    def pullback(do: Any = None, dr: Any = None, dd: Any = None) -> tuple[Array | None, ...]:
        do, dr, dd = (_arrays.cotangent(who, n, g, x) for n, g, x in (("do", do, o), ("dr", dr, r), ("dd", dd, d)))
        *grads, dr0, dd0 = run(*arrays, turn(do, 1), turn(dr, 2, "y"), turn(dd, 2, "x"), workers=workers)
        grads = [turn(g, after) for g, after in zip(grads, _AXES.values(), strict=True)]
        grads += [turn(dr0, 2, "y"), turn(dd0, 2, "x")]
        return tuple(None if x is None else _arrays.grad_like(g, x) for g, x in zip(grads, original, strict=True))

    return (o, r, d), pullback
