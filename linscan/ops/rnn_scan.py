"""Nonlinear recurrences, one step after the other: ``s[t] = f(x[t], R s[t-1] + b, s[t-1])``."""

from collections.abc import Callable

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.in_kind import in_kind
from linscan.ops import rnn_shapes
from linscan.ops.cells import Cell
from linscan.ops.gated_cells import cell_of


@in_kind
def rnn_scan(
    cell: str | Cell,
    x: Array,
    R: Array,
    b: Array | None = None,
    w: Array | None = None,
    h0: Array | None = None,
    *,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> tuple[Array, Array]:
    """Nonlinear recurrence ``s[t] = f(x[t], R u(s[t-1]) + b, s[t-1])`` of a cell f, with ``s[-1] = h0``.

    Parameters
    ----------
    cell : str or `linscan.ops.cells.Cell`
        "elman", "lstm", "gru", "slstm", "peephole_lstm", "leaky", "almost_linear", "para_gru" or "para_lstm"; or a
        cell with options, or of your own. Its class says its equation, gates G, states S and weights W.
    x : array_like
        Inputs of the gates, ``(…, T, G, d)``: projected already, biases of the input side included. Heads and batch
        are leading axes.
    R : array_like
        Recurrent matrices, one per gate and, through leading axes, head: ``(…, G, d, d)``, gate g sees
        ``R[g] @ u``, u being the output before. ``(…, G, d)`` for a cell with diagonal matrices. The leading axes
        of `x` and `R` broadcast, those of all other arguments to theirs.
    b : array_like, optional
        Biases of the recurrent side, ``(…, G, d)``. They differ from those of the input side in a GRU only.
    w : array_like, optional
        Elementwise weights of the cells that have some (peepholes, leak rates, decays), ``(…, W, d)``.
    h0 : array_like, optional
        State before the first step (after the last one if `reverse`), ``(…, S, d)``; its first row is the output.
        None means the cell's start: zero, but -inf for the sLSTM's ``log n``.
    reverse : bool, default False
        Run backwards in time.
    reset : array_like of bool, optional
        ``(…, T)``; where true, the state before that step is the cell's start, exactly: packed sequences.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    h : array
        Outputs, ``(…, T, d)``.
    state : array
        The final state, ``(…, S, d)``: the `h0` that continues the recurrence.

    Raises
    ------
    ValueError
        For an unknown cell, or if the shapes do not fit it or each other.
    TypeError
        For a complex or unsupported dtype, or host and GPU arrays mixed.

    See Also
    --------
    newton_scan : the same, parallel in time.
    rnn_step : one step.
    rnn_scan_vjp : the gradient.

    Notes
    -----
    O(T G d²) operations per head. The result dtype is the promoted dtype of the arrays; float16 and bfloat16 are
    storage. A row's bits do not depend on the other rows or on `workers`. Cells written by users run on the
    reference engine, in array code.

    References
    ----------
    .. [1] K. Pöppel, M. Beck and S. Hochreiter, "FlashRNN: I/O-aware optimization of traditional RNNs on modern
       hardware", 2024, arXiv:2412.07752.

    Examples
    --------
    Two heads of three channels, in one piece and in two:

    >>> import numpy as np
    >>> from linscan import rnn_scan
    >>> rng = np.random.default_rng(0)
    >>> x, R = rng.standard_normal((2, 10, 4, 3)), rng.standard_normal((2, 4, 3, 3)) / 2
    >>> h, state = rnn_scan("lstm", x, R)
    >>> h.shape, state.shape
    ((2, 10, 3), (2, 2, 3))
    >>> _, middle = rnn_scan("lstm", x[:, :6], R)
    >>> rest, _ = rnn_scan("lstm", x[:, 6:], R, h0=middle)
    >>> bool((rest == h[:, 6:]).all())
    True
    """
    r = rnn_shapes.prepare("rnn_scan", cell, x, R, b, w, h0, reset)
    run = pick("rnn_scan", r.x.dtype, r.x)
    h, last, _ = run(r, reverse=bool(reverse), keep=False, workers=workers)
    return h, last.astype(r.x.dtype, copy=False)


def rnn_step(
    cell: str | Cell, x: Array, R: Array, b: Array | None = None, w: Array | None = None, h: Array | None = None
) -> Array:
    """One step of `rnn_scan`.

    Parameters
    ----------
    cell : str or `linscan.ops.cells.Cell`
        As in `rnn_scan`.
    x : array_like
        Inputs of this step, ``(…, G, d)``.
    R, b, w : array_like
        As in `rnn_scan`.
    h : array_like, optional
        The state before the step, ``(…, S, d)``; None means the cell's start.

    Returns
    -------
    state : array
        The state after it, ``(…, S, d)``; ``state[..., 0, :]`` is the output.

    Raises
    ------
    ValueError, TypeError
        As in `rnn_scan`.

    See Also
    --------
    rnn_scan : all steps at once.

    Notes
    -----
    Array code on every engine: a matrix product and the cell's few operations.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import rnn_step
    >>> state = None
    >>> for x in (1.0, 2.0):
    ...     state = rnn_step("elman", np.full((1, 1), x), np.full((1, 1, 1), 0.5), h=state)
    >>> state
    array([[0.9830411]])
    """
    x = _arrays.take("rnn_step", x=x)[1]
    if getattr(x, "ndim", 0) < 2:
        G = cell_of("rnn_step", cell).gates
        raise ValueError(f"rnn_step: x must be (…, G, d) with G = {G}; got {getattr(x, 'shape', ())}")
    r = rnn_shapes.prepare("rnn_step", cell, x[..., None, :, :], R, b, w, h, None)
    x = r.x[..., 0, :, :].astype(r.R.dtype, copy=False)
    return r.cell.step(x, r.cell.product(r.R, r.b, r.s0), r.s0, r.w).astype(r.x.dtype, copy=False)


@in_kind
def rnn_scan_vjp(
    cell: str | Cell,
    x: Array,
    R: Array,
    b: Array | None = None,
    w: Array | None = None,
    h0: Array | None = None,
    *,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> tuple[tuple[Array, Array], Callable[..., tuple[Array | None, ...]]]:
    """`rnn_scan` and its pullback.

    Parameters
    ----------
    cell, x, R, b, w, h0, reverse, reset, workers
        As in `rnn_scan`.

    Returns
    -------
    output : tuple of array
        ``(h, state)``, what `rnn_scan` returns.
    pullback : callable
        ``pullback(dh, dstate)`` returns ``(dx, dR, db, dw, dh0)``, each of its argument's shape and dtype (None where
        the argument was None). None for a cotangent means zero.

    Raises
    ------
    ValueError, TypeError
        As in `rnn_scan`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    rnn_scan : the recurrence.

    Notes
    -----
    Retains the states and ``y``, (S + G) numbers per channel and step, in the arithmetic's dtype. The backward loop
    carries the state's gradient; that of R is one matrix product after it.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import rnn_scan_vjp
    >>> (h, state), pullback = rnn_scan_vjp("elman", np.ones((3, 1, 1)), np.full((1, 1, 1), 0.5))
    >>> dx, dR, db, dw, dh0 = pullback(np.array([[0.0], [0.0], [1.0]]))
    >>> dR
    array([[[0.19432008]]])
    """
    # With σ[t] = ∂L/∂s[t] over every path and (dx, dy, ds) the pullback of the cell's step at t:
    #   σ[t]   = (dh[t], 0, …) + ds[t+1] + ∂u/∂s Rᵀ dy[t+1]   through the output, the cell itself and the matrices,
    #   dR     = Σ_t dy[t] u(s[t-1])ᵀ,   db = Σ_t dy[t],   dh0 = ds[0] + ∂u/∂s Rᵀ dy[0];
    # nothing flows back over a reset.
    r = rnn_shapes.prepare("rnn_scan_vjp", cell, x, R, b, w, h0, reset)
    given, options = (x, R, b, w, h0), {"reverse": bool(reverse), "workers": workers}
    h, last, saved = pick("rnn_scan", r.x.dtype, r.x)(r, keep=True, **options)
    last = last.astype(r.x.dtype, copy=False)
    run = pick("rnn_scan_pullback", r.x.dtype, r.x)

    def pullback(dh: Array | None = None, dstate: Array | None = None) -> tuple[Array | None, ...]:
        dh = _arrays.cotangent("rnn_scan_vjp", "dh", dh, h)
        dstate = _arrays.cotangent("rnn_scan_vjp", "dstate", dstate, last)
        dx, dy, dw, dh0 = run(r, saved, dh, dstate, **options)
        return rnn_shapes.gradients(r, saved[0], (dx, dy, dw, dh0), given, bool(reverse))

    return (h, last), pullback
