"""Nonlinear recurrences on the CPU: a few rows that share their matrices go through time together.

A step of four such rows reads each matrix once and multiplies it with four vectors; sums over a matrix row are taken in
order, so that a row's bits do not depend on its company. Cells without a kernel run as array code.
"""

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu import rnn_loops
from linscan.engines.cpu.pool import parallel_for, resolve_workers
from linscan.engines.cpu.rnn_cells import KEPT, KINDS, SCRATCH
from linscan.engines.cpu.rnn_math import constants
from linscan.engines.cpu.rnn_product import WIDTH, panels
from linscan.engines.reference import rnn_scan as reference

_GRAIN = 1 << 16  # multiply-adds a thread must get for its hand-over (about 30 us) to pay
_COMPANY = 4  # rows that go through time together


def rnn_scan(r, *, reverse: bool, keep: bool, workers) -> tuple[Array, Array, object]:
    """See `linscan.engines.reference.rnn_scan`; with `keep`, states and activations."""
    kind = _kind(r)
    if kind is None:
        return reference.rnn_scan(r, reverse=reverse, keep=keep, workers=workers)
    *lead, T, G, d = r.x.shape
    compute, n = accum_dtype(r.x.dtype), r.cell.states
    states = np.empty((*lead, T, n if keep else 1, d), compute)
    acts = np.empty((*lead, T if keep else 0, KEPT, d), compute)
    last = np.array(r.s0, compute, order="C")
    shared, edges, rows = _layout(r, compute, True, workers)
    b = np.broadcast_to(np.zeros((), compute), (*lead, G, d)) if r.b is None else r.b
    inputs = [_flat(v, rows, len(lead), compute) for v in (r.x, b)]
    outputs = [v.reshape(rows, *v.shape[len(lead) :]) for v in (states, acts, last)]
    options = bool(reverse), _linear(r.cell, d), r.cell.diagonal

    def body(lo: int, hi: int) -> None:
        shapes = (_COMPANY, d), (_COMPANY, _padded(G * d)), (SCRATCH, d), (n, d)
        scratch = tuple(np.zeros(shape, compute) for shape in shapes)
        rnn_loops.forward(*kind, options, *shared, *inputs, *outputs, edges[lo : hi + 1], scratch, constants(compute))

    parallel_for(body, len(edges) - 1, grain=_grain(r, len(edges) - 1), workers=workers)
    return np.ascontiguousarray(states[..., 0, :], r.x.dtype), last, (states, acts)


def rnn_scan_pullback(r, saved, dh: Array, dlast: Array, *, reverse: bool, workers):
    """See `linscan.engines.reference.rnn_scan`."""
    kind = _kind(r)
    if kind is None:
        return reference.rnn_scan_pullback(r, saved, dh, dlast, reverse=reverse, workers=workers)
    *lead, _, G, d = r.x.shape
    compute, n = accum_dtype(r.x.dtype), r.cell.states
    dx, dw = np.empty(r.x.shape, compute), np.zeros((*lead, r.cell.weights, d), compute)
    ds = np.array(dlast, compute, order="C")
    shared, edges, rows = _layout(r, compute, False, workers)
    inputs = [_flat(v, rows, len(lead), compute) for v in (r.s0, dh, *saved)]
    outputs = [v.reshape(rows, *v.shape[len(lead) :]) for v in (dx, dw, ds)]
    options = bool(reverse), _linear(r.cell, d), r.cell.diagonal

    def body(lo: int, hi: int) -> None:
        shapes = (_COMPANY, G * d), (_COMPANY, _padded(d)), (_COMPANY, n, d)
        scratch = tuple(np.zeros(shape, compute) for shape in shapes)
        rnn_loops.backward(*kind, options, *shared, *inputs, *outputs, edges[lo : hi + 1], scratch, constants(compute))

    parallel_for(body, len(edges) - 1, grain=_grain(r, len(edges) - 1), workers=workers)
    dy = dx
    if kind[0] is not None:  # a GRU's y_n comes in behind the reset gate
        dy = dx.copy()
        dy[..., 2, :] *= saved[1][..., 0, :]
    return dx, dy, None if r.w is None else dw, ds


def _kind(r):
    """The kernels' arguments for a shipped cell; None for others (subclasses with steps of their own) and no data."""
    return KINDS.get(vars(type(r.cell)).get("name")) if r.x.size else None


def _linear(cell, width):
    """How many units R sees as they are; those after them through a ReLU."""
    return cell.linear(width) if cell.name == "almost_linear" else width


def _layout(r, compute, forward, workers):
    """What both loops take, (rows, …), contiguous and read-only; where companies of rows end; how many rows."""
    *lead, _, G, d = r.x.shape
    own = r.R.shape[: r.R.ndim - (2 if r.cell.diagonal else 3)]
    count = int(np.prod(own, dtype=np.intp))
    if r.cell.diagonal:
        matrices = r.R.reshape(count, 1, 1, G * d)
    else:
        matrices = r.R.reshape(count, G * d, d)
        matrices = panels(matrices.swapaxes(1, 2) if forward else matrices)
    which = np.broadcast_to(np.arange(count).reshape(own), lead).ravel()
    order = np.argsort(which, kind="stable")
    rows = order.size
    company = max(1, min(_COMPANY, -(-rows // resolve_workers(workers))))
    edges = [0]
    for i in range(1, rows + 1):
        if i == rows or i - edges[-1] == company or which[order[i]] != which[order[i - 1]]:
            edges.append(i)
    w = np.broadcast_to(np.zeros((), compute), (*lead, 0, d)) if r.w is None else r.w
    reset = np.zeros((rows, 0), bool) if r.reset is None else r.reset
    shared = [_given(matrices), _flat(w, rows, len(lead), compute), _given(r.start[:, 0])]
    shared.append(_given(reset.reshape(rows, reset.shape[-1])))
    return (*shared, which, order), np.array(edges), rows


def _grain(r, companies):
    """Companies a thread must get."""
    work = r.x.size * (8 if r.cell.diagonal else 8 + r.x.shape[-1])
    return max(1, _GRAIN * companies // work)


def _flat(v, rows, lead, dtype):
    return _given(np.asarray(v, dtype).reshape(rows, *v.shape[lead:]))


def _given(v):
    """`v`, C-contiguous and read-only: one kernel serves all layouts."""
    return np.broadcast_to(np.ascontiguousarray(v), v.shape)


def _padded(width):
    return -(-width // WIDTH) * WIDTH
