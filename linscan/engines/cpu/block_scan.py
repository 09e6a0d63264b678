"""Block scans on the CPU: rows are shared out between threads, and what is not contiguous goes through tiles.

One long row stays on one thread. To share it, threads would have to multiply its matrices ahead of its states: n times
the arithmetic, on every machine and for every number of threads if bits are not to depend on it, and products of
matrices can grow where the states do not.
"""

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu import block_rows, block_rows_back
from linscan.engines.cpu.pool import parallel_for

_GRAIN = 1 << 15  # elements a thread must get for its hand-over to pay
_TILE = 1 << 14  # matrix elements of a contiguous tile
_ROWS = {2: block_rows.rows2, 3: block_rows.rows3, 4: block_rows.rows4}
_ROWS_BACK = {2: block_rows_back.rows2_back, 3: block_rows_back.rows3_back, 4: block_rows_back.rows4_back}


def block_scan(A: Array, b: Array, h0: Array | None, *, reverse, reset, workers) -> Array:
    """See `linscan.ops.block_scan.block_scan`; `A` has all axes, of size 1 where it broadcasts."""
    h = np.empty(b.shape, b.dtype)
    if h.size:
        _run(A, [b], reset, [], [h], _state(h0, b), reverse, workers)
    return h


def block_scan_pullback(A: Array, h: Array, h0: Array | None, dh: Array, *, reverse, reset, workers):
    """See `linscan.ops.block_scan.block_scan_vjp`: the gradients of `A`, `b` and `h0`, summed over time only."""
    n, shared = h.shape[-1], A.shape[-3] == 1 != h.shape[-2]
    db, flow, initial = np.empty(h.shape, h.dtype), _state(None, h), _state(h0, h)
    dA = None if shared else np.empty((*h.shape, n), h.dtype)
    if h.size:
        _run(A, [h, dh], reset, [initial], [dA, db], flow, reverse, workers)
    if shared:
        dA = _product(h, db, initial.reshape(*h.shape[:-2], 1, n), reset, reverse)
    return dA, db, flow.reshape(*h.shape[:-2], n)


def _product(h, db, initial, reset, reverse):
    """The gradient of one matrix that serves all steps: the sum over t of ``δ[t] h[t-1]^H``."""
    order = [h[..., 1:, :], initial] if reverse else [initial, h[..., :-1, :]]
    before = np.concatenate(order, axis=-2, dtype=initial.dtype)[..., : h.shape[-2], :]
    if reset is not None:
        before[reset] = 0
    return (db.astype(initial.dtype, copy=False).swapaxes(-1, -2) @ before.conj())[..., None, :, :]


def _state(h0, b):
    """The states before the first step, (rows, n), in the arithmetic's dtype; always a new array."""
    state = np.zeros((*b.shape[:-2], b.shape[-1]), accum_dtype(b.dtype))
    if h0 is not None:
        state[...] = h0
    return state.reshape(int(np.prod(b.shape[:-2], dtype=np.intp)), b.shape[-1])


def _run(A, ins, reset, initial, outs, state, reverse, workers):
    """Run the scan (no `initial`) or its pullback over all rows; `state` is carried."""
    (length, n), lead = ins[0].shape[-2:], ins[0].shape[:-2]
    kernel = _ROWS_BACK.get(n, block_rows_back.rows_any_back) if initial else _ROWS.get(n, block_rows.rows_any)
    # One matrix, or one sequence of them, may serve many rows, which find it by its number.
    number = np.arange(int(np.prod(A.shape[:-3], dtype=np.intp))).reshape(A.shape[:-3])
    number = np.broadcast_to(number, lead).reshape(-1)
    A = A.reshape(-1, *A.shape[-3:])
    ins, outs = ([x if x is None else x.reshape(len(state), *x.shape[len(lead) :]) for x in xs] for xs in (ins, outs))
    starts = None if reset is None else reset.reshape(len(state), length)
    arrays = [x for x in (A, *ins, *outs) if x is not None]
    if all(x.dtype == state.dtype and x.flags.c_contiguous for x in arrays):
        sizes = length, n * n if A.shape[1] > 1 else 0
        flat = [x if x is None else x.reshape(-1) for x in (A, *ins, starts, *outs)]
        before, after, first = flat[: len(ins) + 2], flat[len(ins) + 2 :], number * (A.shape[1] * n * n)

        def body(lo: int, hi: int) -> None:
            kernel(*before, *initial, *after, state, first, sizes, lo, hi, reverse)
    else:

        def body(lo: int, hi: int) -> None:
            _tiles(kernel, (A, number), ins, starts, initial, outs, state, reverse, lo, hi)

    parallel_for(body, len(state), grain=max(1, _GRAIN // (length * n * n)), workers=workers)


def _tiles(kernel, matrices, ins, starts, initial, outs, state, reverse, lo, hi):
    """Rows `lo` to `hi` through contiguous tiles of rows and times, in the arithmetic's dtype."""
    (A, number), (length, n) = matrices, ins[0].shape[1:]
    times = min(length, max(1, _TILE // n**2))
    count = max(1, _TILE // (times * n**2))
    edges = range(0, length, times)
    for r in range(lo, hi, count):
        rows = slice(r, min(r + count, hi))
        for t in edges if bool(initial) == reverse else reversed(edges):
            part = rows, slice(t, t + times)
            mats = A[number[rows], part[1]] if A.shape[1] > 1 else A[number[rows]]
            mats = np.ascontiguousarray(mats, state.dtype)
            given = [np.ascontiguousarray(x[part], state.dtype) for x in ins]
            begins = None if starts is None else np.ascontiguousarray(starts[part]).reshape(-1)
            results = [x if x is None else np.empty(x[part].shape, state.dtype) for x in outs]
            earlier = t + times if reverse else t - 1
            if initial and 0 <= earlier < length:
                first = [np.ascontiguousarray(ins[0][rows, earlier], state.dtype)]
            else:
                first = [x[rows] for x in initial]
            sizes = given[0].shape[1], n * n if A.shape[1] > 1 else 0
            flat = [x if x is None else x.reshape(-1) for x in (mats, *given, begins)]
            where = np.arange(len(mats)) * mats[0].size
            after = [x if x is None else x.reshape(-1) for x in results]
            kernel(*flat, *first, *after, state[rows], where, sizes, 0, len(mats), reverse)
            for x, y in zip(outs, results, strict=True):
                if x is not None:
                    x[part] = y
