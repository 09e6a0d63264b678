"""All prefixes of an associative operator: ``y[t] = x[0] ∘ x[1] ∘ … ∘ x[t]``."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._trees import Tree, leaves, matched, named_arrays, rebuild
from linscan.engines.reference.assoc_scan import ALGORITHMS, Line  # nothing to pick: no engine compiles a user's op


def assoc_scan(
    op: Callable[[Tree, Tree], Tree],
    elems: Tree,
    initial: Tree = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    algorithm: str = "chunked",
) -> Tree:
    """All prefixes ``y[t] = op(y[t-1], x[t])`` of an associative operator, along one axis.

    Parameters
    ----------
    op : callable
        ``op(earlier, later)`` combines two structures like `elems`, position by position along `axis`, which can
        have any length; it returns new arrays of the same shapes and dtypes and leaves its arguments alone.
        It must be associative, ``op(op(x, y), z) = op(x, op(y, z))``; it need not commute.
    elems : array, or tuple, list or dict of arrays (nested if you like)
        The elements x. Each array is one component: equally long along `axis`, otherwise of any shape and dtype.
    initial : structure like `elems`, optional
        Comes before the first element: ``y[0] = op(initial, x[0])``. Each array broadcasts to its component without
        `axis`. The last element of a result is the `initial` that continues the scan.
    axis : int, default -1
        The time axis of every component.
    reverse : bool, default False
        Scan from the end: ``y[t] = op(y[t+1], x[t])``. The first argument of `op` is always what was scanned already,
        so one operator serves both directions; `initial` then comes after the last element.
    algorithm : {"chunked", "sequential", "hillis_steele", "blelloch", "lookback"}
        In which order pairs are combined; see Notes.

    Returns
    -------
    y : structure like `elems`
        All prefixes, as new C-contiguous arrays.

    Raises
    ------
    ValueError
        If lengths differ, `initial` does not fit, `op` changes structure, shape or dtype, or the algorithm is unknown.
    TypeError
        If a component is not an array, or host and GPU arrays are mixed.
    numpy.exceptions.AxisError
        If `axis` is out of range for a component.

    See Also
    --------
    scan_trace : who is combined with whom, the work and the depth.
    scan : the affine operator, compiled.

    Notes
    -----
    One step is `op` itself. For n elements (exactly: see `scan_trace`):

    ============= ================================= ======================= ===================================
    algorithm     work (pairs combined)             depth (one after other) good for
    ============= ================================= ======================= ===================================
    sequential    n - 1                             n - 1                   exactness; wide batches
    hillis_steele n log₂ n - n + 1                  log₂ n                  short n on very many processors
    blelloch      2n - 2 - log₂ n                   2 log₂ n - 2            long n, operators that cannot overflow
    chunked       2n - 2 - √n                       3√n - 3                 the rest
    lookback      2n + n^(3/4)                      2√n and a little        watching how a GPU does it
    ============= ================================= ======================= ===================================

    `op` alone decides the arithmetic: dtypes stay as they are, integers too, and float16 is not accumulated in float32.
    The algorithms agree up to rounding, and up to overflow, for they combine spans that the loop never forms: for maps
    ``(a, b)`` with ``|a| > 1`` a span's product may become inf, and ``inf * 0`` is NaN where the loop is finite. Spans
    are up to n long in ``hillis_steele`` and ``blelloch``, a chunk of √n in ``chunked``, some chunks in ``lookback``.

    References
    ----------
    .. [1] W. D. Hillis and G. L. Steele, "Data parallel algorithms", CACM 29, 1986, doi:10.1145/7902.7903.
    .. [2] G. E. Blelloch, "Prefix sums and their applications", CMU-CS-90-190, 1990.
    .. [3] D. Merrill and M. Garland, "Single-pass parallel prefix scan with decoupled look-back", NVR-2016-002, 2016.

    Examples
    --------
    The maps ``h -> a h + b`` compose associatively, so a recurrence is a scan:

    >>> import numpy as np
    >>> from linscan import assoc_scan
    >>> def then(f, g):
    ...     return g[0] * f[0], g[0] * f[1] + g[1]
    >>> a, b = assoc_scan(then, (np.array([0.5, 0.5, 0.25]), np.array([1.0, 2.0, 4.0])))
    >>> b
    array([1.   , 2.5  , 4.625])

    >>> assoc_scan(np.maximum, np.array([1, 5, 2]), 3)
    array([3, 5, 5])
    """
    _arrays.check_choice("assoc_scan", "algorithm", algorithm, tuple(ALGORITHMS))
    y, first = _prepare("assoc_scan", elems, initial, axis)
    _scan("assoc_scan", op, elems, first, y[::-1] if reverse else y, algorithm)
    return rebuild(elems, y.arrays)


def assoc_scan_vjp(
    op_vjp: Callable[[Tree, Tree], tuple[Tree, Callable[[Tree], tuple[Tree, Tree]]]],
    elems: Tree,
    initial: Tree = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    algorithm: str = "chunked",
) -> tuple[Tree, Callable[[Tree], tuple[Tree, Tree]]]:
    """`assoc_scan` and its pullback, given the operator's.

    An operator is known only by what it returns, so its gradient has to come with it. For affine maps ``(a, b)``, use
    `scan_vjp`, which is compiled.

    Parameters
    ----------
    op_vjp : callable
        ``op_vjp(earlier, later)`` returns ``(result, pullback)``, and ``pullback(dresult)`` returns
        ``(dearlier, dlater)``, all of them structures like `elems`.
    elems, initial, axis, reverse, algorithm
        As in `assoc_scan`; integers become float64.

    Returns
    -------
    y : structure like `elems`
        What `assoc_scan` returns.
    pullback : callable
        ``pullback(dy)`` returns ``(delems, dinitial)`` (None where the argument was None); `dy` is a structure like
        `y`, and None, for all of it or for one of its arrays, means zero.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `assoc_scan`; TypeError also for components that are not numbers.

    See Also
    --------
    scan_vjp : the gradient of the affine recurrence.

    Notes
    -----
    The pullback is the sequential loop's, whatever the algorithm: n - 1 calls of `op_vjp`. It retains `elems` and `y`.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import assoc_scan_vjp
    >>> def times(p, q):
    ...     return p * q, lambda d: (d * q, d * p)
    >>> y, pullback = assoc_scan_vjp(times, np.array([2.0, 3.0, 5.0]))
    >>> pullback(np.array([0.0, 0.0, 1.0]))[0]
    array([15., 10.,  6.])
    """
    # y[t] = op(y[t-1], x[t]). With δ[t] = ∂L/∂y[t] over every path and (P, Q) the two halves of op's pullback at t,
    #   δ[t] = dy[t] + P[t+1] δ[t+1]   because y[t] reaches L through dy[t] and through y[t+1];   dx[t] = Q[t] δ[t].
    # The first step pulls back to `initial`; without one, y[0] = x[0] and dx[0] = δ[0].
    who, order = "assoc_scan_vjp", slice(None, None, -1 if reverse else 1)
    _arrays.check_choice(who, "algorithm", algorithm, tuple(ALGORITHMS))
    y, first = _prepare(who, elems, initial, axis, floating=True)
    x = y.copy()
    _scan(who, lambda earlier, later: op_vjp(earlier, later)[0], elems, first, y[order], algorithm)
    out, xs, ys = rebuild(elems, y.arrays), x[order], y[order]

    def pull(earlier: Line, later: Line, delta: Line) -> list[Line]:
        _, back = op_vjp(rebuild(elems, earlier.arrays), rebuild(elems, later.arrays))
        halves = back(rebuild(elems, delta.copy().arrays))
        return [Line(matched(who, "a gradient", half, "elems", elems), y.axes) for half in halves]

    def pullback(dy: Tree) -> tuple[Tree, Tree]:
        d = Line(_cotangents(who, dy, out), y.axes)[order]  # dy, turned into δ and then into dx from the last step on
        for t in range(len(d) - 1, 0, -1):
            flow, d[t : t + 1] = pull(ys[t - 1 : t], xs[t : t + 1], d[t : t + 1])
            for total, part in zip(d[t - 1 : t].arrays, flow.arrays, strict=True):
                total += part
        dinitial = None
        if first is not None:
            dfirst = first[:0]
            if len(d):
                dfirst, d[:1] = pull(first, xs[:1], d[:1])
            grads = [g.sum(i) for g, i in zip(dfirst.arrays, y.axes, strict=True)]
            dinitial = rebuild(elems, map(_arrays.grad_like, grads, matched(who, "initial", initial, "elems", elems)))
        return rebuild(elems, map(_arrays.grad_like, d[order].arrays, leaves(elems).values())), dinitial

    return out, pullback


def _prepare(who: str, elems: Tree, initial: Tree, axis: int, floating: bool = False) -> tuple[Line, Line | None]:
    """`elems` as new arrays in the dtypes of the result, and `initial` as a line of length one."""
    named = named_arrays(who, "elems", elems)
    begin = dict.fromkeys(f"initial{path}" for path in leaves(elems))
    if initial is not None:
        begin = dict(zip(begin, matched(who, "initial", initial, "elems", elems), strict=True))
        if any(x is None for x in begin.values()):
            raise TypeError(f"{who}: initial must hold something for every array of elems; got {initial!r}")
    xp, *taken = _arrays.take(who, **named, **begin)
    xs, firsts = taken[: len(named)], taken[len(named) :]
    axes = [_arrays.check_axis(who, axis, x.ndim) for x in xs]
    for name, x, i in zip(named, xs, axes, strict=True):
        if x.shape[i] != xs[0].shape[axes[0]]:
            raise ValueError(
                f"{who}: all arrays must be equally long along axis {axis}; "
                f"{next(iter(named))} has shape {xs[0].shape}, {name} has shape {x.shape}"
            )
    to = _arrays.result_dtype if floating else _promoted
    dtypes = [to(who, **{n: x, m: v}) for n, x, m, v in zip(named, xs, begin, firsts, strict=True)]
    y = Line([xp.array(x, dtype, order="C") for x, dtype in zip(xs, dtypes, strict=True)], axes)
    if initial is None:
        return y, None
    for k, (name, x, i) in enumerate(zip(begin, y.arrays, axes, strict=True)):
        start = xp.asarray(firsts[k], x.dtype)
        firsts[k] = xp.expand_dims(_arrays.broadcast_to(who, name, start, x.shape[:i] + x.shape[i + 1 :]), i)
    return y, Line(firsts, axes)


def _promoted(who: str, **named: Any) -> np.dtype:
    """The dtype that holds a component and its initial value; unlike elsewhere, integers stay integers."""
    return np.result_type(*(getattr(x, "dtype", x) for x in named.values() if x is not None))


def _scan(who: str, op: Callable[[Tree, Tree], Tree], elems: Tree, first: Line | None, y: Line, algorithm: str) -> None:
    """Scan `y` in place, holding `op` to its contract at every call."""

    def combine(earlier: Line, later: Line) -> Line:
        result = op(*(rebuild(elems, line.arrays) for line in (earlier, later)))
        new = matched(who, "the result of op", result, "elems", elems)
        for path, x, old in zip(leaves(elems), new, later.arrays, strict=True):
            if (getattr(x, "shape", None), getattr(x, "dtype", None)) != (old.shape, old.dtype):
                came, went = (f"{v.dtype} {v.shape}" if hasattr(v, "dtype") else type(v).__name__ for v in (x, old))
                raise ValueError(
                    f"{who}: op must keep shapes and dtypes; elems{path} went in as {went}, came out as {came}"
                )
        return Line([x if x.base is None else x.copy() for x in new], y.axes)  # a view may be about to be overwritten

    if first is not None and len(y):
        y[:1] = combine(first, y[:1])
    ALGORITHMS[algorithm](combine, y)


def _cotangents(who: str, dy: Tree, y: Tree) -> list[Any]:
    """`dy` as new arrays like those of `y`."""
    grads = [None] * len(leaves(y)) if dy is None else matched(who, "dy", dy, "y", y)
    return [_arrays.cotangent(who, f"dy{p}", g, x).copy() for g, (p, x) in zip(grads, leaves(y).items(), strict=True)]
