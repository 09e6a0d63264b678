"""What `rnn_scan` and `newton_scan` share: their arguments' checks and shapes, and the gradients of R, b and w."""

from math import prod
from typing import Any, NamedTuple

from linscan import _arrays
from linscan._arrays import Array, namespace
from linscan.ops.cells import Cell
from linscan.ops.gated_cells import cell_of


class Recurrence(NamedTuple):
    """Checked arguments: arrays in the arithmetic's dtype but x, all but R and b broadcast to the leading axes."""

    cell: Cell
    x: Array  # (…, T, G, d) in the result's dtype
    R: Array  # (…, G, d, d), or (…, G, d) where the cell is diagonal
    b: Array | None  # (…, G, d)
    w: Array | None  # (…, W, d)
    s0: Array  # (…, S, d): the state given, or the cell's start
    start: Array  # (S, 1): the cell's start
    reset: Array | None  # (…, T)


def prepare(who: str, cell: Any, x: Any, R: Any, b: Any, w: Any, h0: Any, reset: Any) -> Recurrence:
    """Take and check all arguments of `rnn_scan`."""
    cell = cell_of(who, cell)
    xp, x, R, b, w, h0, reset = _arrays.take(who, x=x, R=R, b=b, w=w, h0=h0, reset=reset)
    dtype = real_result(who, x=x, R=R, b=b, w=w, h0=h0)
    compute = _arrays.accum_dtype(dtype)
    x, R = xp.asarray(x, dtype), xp.asarray(R, compute)
    width = x.shape[-1] if x.ndim else 0
    check_rows(who, "x", x, (cell.gates, width), "(…, T, G, d)", 3)
    check_recurrent(who, cell, R, width)
    core = 2 if cell.diagonal else 3
    lead = _arrays.broadcast_shapes(who, x=x.shape[:-3], R=R.shape[: R.ndim - core])
    x = xp.broadcast_to(x, (*lead, *x.shape[-3:]))
    start = xp.zeros((cell.states, 1), compute)
    for row, value in enumerate(cell.start or ()):
        start[row] = value  # one number at a time: nothing is copied to the GPU, which a captured graph could not
    b = _rows(who, "b", b, compute, lead, cell.gates, width, xp)
    w = _rows(who, "w", w, compute, lead, cell.weights, width, xp)
    if w is None and cell.weights:
        raise ValueError(f"{who}: w is needed by this cell, of shape (…, {cell.weights}, {width})")
    s0 = start if h0 is None else h0
    s0 = _rows(who, "h0", s0, compute, lead, cell.states, width, xp)
    if reset is not None:
        reset = xp.asarray(reset)
        if reset.dtype.kind not in "biu":
            raise TypeError(f"{who}: reset must be boolean; got {reset.dtype}")
        reset = _arrays.broadcast_to(who, "reset", reset.astype(bool, copy=False), (*lead, x.shape[-3]))
    return Recurrence(cell, x, R, b, w, s0, start, reset)


def real_result(who: str, **named: Any) -> Any:
    """The promoted dtype of the arguments; TypeError if it is complex."""
    dtype = _arrays.result_dtype(who, **named)
    if dtype.kind == "c":
        raise TypeError(f"{who}: cells are real; got {dtype}")
    return dtype


def check_rows(who: str, name: str, x: Array, core: tuple[int, int], form: str, ndim: int) -> None:
    """ValueError unless `x` ends in the axes `core`."""
    if x.ndim < ndim or x.shape[-2:] != core:
        raise ValueError(f"{who}: {name} must be {form} with G = {core[0]} and d = {core[1]}; got {x.shape}")


def check_recurrent(who: str, cell: Cell, R: Array, width: int) -> None:
    """ValueError unless R fits the cell."""
    core = (cell.gates, width) if cell.diagonal else (cell.gates, width, width)
    if R.ndim < len(core) or R.shape[-len(core) :] != core:
        form = "(…, G, d)" if cell.diagonal else "(…, G, d, d)"
        raise ValueError(f"{who}: R must be {form} with G = {cell.gates} and d = {width}; got {R.shape}")


def _rows(who: str, name: str, x: Any, dtype: Any, lead: tuple[int, ...], rows: int, width: int, xp: Any) -> Any:
    """`x` broadcast to ``(*lead, rows, width)``; None stays None."""
    if x is None:
        return None
    return _arrays.broadcast_to(who, name, xp.asarray(x, dtype), (*lead, rows, width))


def before(states: Array, r: Recurrence, reverse: bool) -> Array:
    """The states before each step, (…, T, S, d), from those after each: `s0` first, the start at resets."""
    xp, first = namespace(states), r.s0[..., None, :, :]
    if reverse:
        s = xp.concatenate([states[..., 1:, :, :], first[..., : states.shape[-3], :, :]], axis=-3)
    else:
        s = xp.concatenate([first[..., : states.shape[-3], :, :], states[..., :-1, :, :]], axis=-3)
    return s if r.reset is None else xp.where(r.reset[..., None, None], r.start, s)


def gradients(
    r: Recurrence, states: Array, found: tuple[Any, ...], given: tuple[Any, ...], reverse: bool
) -> tuple[Array | None, ...]:
    """Gradients of x, R, b, w and h0 as given, from `found`: those of x, y, w and the first state.

    Instead of that of y, where R is diagonal, there may be a tuple of those of R and b: its sums over time.
    """
    (dx, dy, dw, ds), xp = found, namespace(r.x)
    x, R, b, w, h0 = _arrays.take("rnn_scan", x=given[0], R=given[1], b=given[2], w=given[3], h0=given[4])[1:]
    if not isinstance(dy, tuple):
        u = r.cell.feed(before(states, r, reverse))
        dR = (dy * u[..., None, :]).sum(axis=-3) if r.cell.diagonal else _outer(dy, u, xp.shape(R), xp)
        dy = dR, None if b is None else dy.sum(axis=-3)
    pairs = (dx, x), (dy[0], R), (dy[1], b), (dw, w), (ds, h0)
    return tuple(_arrays.grad_like(grad, like) for grad, like in pairs)


def _outer(dy: Array, u: Array, shape: tuple[int, ...], xp: Any) -> Array:
    """``Σ dy uᵀ`` over all times and all leading axes R is broadcast along, in one matrix product."""
    lead = dy.shape[:-3]
    own = (1,) * (len(lead) - (len(shape) - 3)) + shape[:-3]
    shared, kept = ([i for i in range(len(lead)) if (own[i] == 1) == flag] for flag in (True, False))
    (T, G, d), n = dy.shape[-3:], len(lead)
    groups, count = tuple(lead[i] for i in kept), prod(lead[i] for i in shared) * T
    dy = dy.transpose(*kept, n + 1, n + 2, *shared, n).reshape(*groups, G * d, count)
    u = u.transpose(*kept, *shared, n, n + 1).reshape(*groups, count, d)
    return xp.matmul(dy, u).reshape(shape)
