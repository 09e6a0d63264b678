"""All prefixes of an associative operator: ``y[t] = x[0] ∘ x[1] ∘ … ∘ x[t]``."""

from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._trees import Tree, leaves, matched, rebuild
from linscan.engines import pick_compiler
from linscan.engines.reference.assoc_scan import ALGORITHMS, Line  # `op` itself runs on any arrays
from linscan.ops.assoc_elems import fields, prepare, run_op


def assoc_scan(
    op: Callable[[Tree, Tree], Tree],
    elems: Tree,
    initial: Tree = None,
    *,
    axis: int = -1,
    reverse: bool = False,
    algorithm: str = "chunked",
    cuda: str | None = None,
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
    cuda : str, optional
        The same operator as device code, which CuPy arrays are then scanned by, in one pass, whatever the algorithm:
        CUDA C++ that defines ``__device__ Element combine(Element earlier, Element later)``. An Element has one number
        for each array, in order, named after its key if `elems` is a dict, else x0, x1 and so on; numbers of 16-bit
        floats are float, complex ones have ``re`` and ``im``. All arrays need the same shape.

    Returns
    -------
    y : structure like `elems`
        All prefixes, as new C-contiguous arrays.

    Raises
    ------
    ValueError
        If lengths differ, `initial` does not fit, `op` changes structure, shape or dtype, the algorithm is unknown, or
        `cuda` does not compile (the message has the compiler's, with the line).
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
    y, first = prepare("assoc_scan", elems, initial, axis)
    if cuda is not None:
        names = fields(cuda, elems, y)
        run = pick_compiler(*y.arrays)
        if run is not None:
            firsts = None if first is None else [x[(slice(None),) * y.axes[0] + (0,)] for x in first.arrays]
            run(cuda, names, y.arrays, firsts, y.axes[0], reverse)
            return rebuild(elems, y.arrays)
    run_op("assoc_scan", op, elems, first, y[::-1] if reverse else y, algorithm)
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
    y, first = prepare(who, elems, initial, axis, floating=True)
    x = y.copy()
    run_op(who, lambda earlier, later: op_vjp(earlier, later)[0], elems, first, y[order], algorithm)
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


def _cotangents(who: str, dy: Tree, y: Tree) -> list[Any]:
    """`dy` as new arrays like those of `y`."""
    grads = [None] * len(leaves(y)) if dy is None else matched(who, "dy", dy, "y", y)
    return [_arrays.cotangent(who, f"dy{p}", g, x).copy() for g, (p, x) in zip(grads, leaves(y).items(), strict=True)]
