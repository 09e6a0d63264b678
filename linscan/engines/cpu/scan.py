"""First-order scans on the CPU: how rows, columns and one long row are handed to the kernels and the threads.

Arrays are seen as (outer, T, inner). With many inner channels a time step is a vector operation (`scan_columns`);
otherwise every row runs by itself (`scan_rows`). What is not contiguous, not in the arithmetic's dtype, or has resets
goes through contiguous tiles that stay in the cache.
"""

from functools import partial

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu import scan_columns, scan_rows
from linscan.engines.cpu.pool import parallel_for, resolve_workers

_GRAIN = 1 << 15  # elements a thread must get for its hand-over to pay
_TILE = 1 << 15  # elements of a contiguous tile
_WIDE = 8  # inner channels from which a time step is worth a vector operation
_LONG = 1 << 16  # rows from this length on run in blocks, so that threads can share one row
_BLOCK = 1 << 13


def scan(a: Array, b: Array, h0: Array | None, *, axis, reverse, reset, out, workers) -> Array:
    """See `linscan.ops.scan.scan`; `a` and `b` are broadcast, of one dtype."""
    fits = out is not None and out.flags.c_contiguous and not _overlaps(out, a, b)
    h = out if fits else np.empty(b.shape, b.dtype)
    if h.size:
        state = _state(h0, h, axis)
        _run([a, b], [h], [state], reset, axis, reverse, workers)
    if out is not None and h is not out:
        out[...] = h
    return h if out is None else out


def scan_pullback(a: Array, h: Array, h0: Array | None, dh: Array, *, axis, reverse, reset, workers):
    """See `linscan.ops.scan.scan_vjp`: the gradients of `a`, `b` and `h0`, unreduced over broadcast axes."""
    da, db = np.empty(h.shape, h.dtype), np.empty(h.shape, h.dtype)
    flow = _state(None, h, axis)
    if h.size:
        _run([a, h, dh], [da, db], [_state(h0, h, axis), flow], reset, axis, reverse, workers)
    return da, db, flow.reshape(h.shape[:axis] + h.shape[axis + 1 :]).astype(h.dtype, copy=False)


def _overlaps(out, a, b):
    """Whether writing `out` could change inputs not yet read: it may be an input itself, but no other view of it."""

    def same(x):
        return x.__array_interface__["data"] == out.__array_interface__["data"] and x.strides == out.strides

    return any(np.may_share_memory(out, x) and not same(x) for x in (a, b))


def _state(h0, h, axis):
    """The states before the first step, (outer, inner), in the arithmetic's dtype; always a new array."""
    outer, inner = _fold(h.shape, axis)
    state = np.zeros((outer, inner), accum_dtype(h.dtype))
    if h0 is not None:
        state.reshape(h0.shape)[...] = h0
    return state


def _fold(shape, axis):
    return int(np.prod(shape[:axis], dtype=np.intp)), int(np.prod(shape[axis + 1 :], dtype=np.intp))


def _run(ins, outs, states, reset, axis, reverse, workers):
    """Run the scan (one output) or its pullback (two) over arrays of one shape; the last of `states` is carried."""
    back = len(outs) == 2
    (outer, inner), length = _fold(outs[0].shape, axis), outs[0].shape[axis]
    compute = states[0].dtype
    views = [x.reshape(outer, length, inner) for x in [*ins, *([] if reset is None else [reset]), *outs]]
    if reset is None and inner >= _WIDE:
        views = [_unrepeated(x) for x in views]
    plain = reset is None and all(x.dtype == compute and x.flags.c_contiguous for x in views)
    grain = max(1, _GRAIN // max(1, length * inner))
    if plain and inner == 1 and length >= _LONG and not back:
        _run_long(*views, states[0], reverse, workers)
    elif plain and inner == 1:
        kernel = scan_rows.rows_back if back else scan_rows.rows

        def body(lo, hi):
            flat = [x[lo:hi].reshape(-1) for x in views]
            ends = [s[lo:hi].reshape(-1) for s in states]
            kernel(*flat[: len(ins)], *ends[:-1], *flat[len(ins) :], ends[-1], length, reverse)

        parallel_for(body, outer, grain=grain, workers=workers)
    elif plain and inner >= _WIDE:
        kernel = scan_columns.columns_back if back else scan_columns.columns
        _run_columns(partial(_columns, kernel, views, states, len(ins), reverse), outer, inner, length, workers)
    else:
        views = [np.broadcast_to(x, (outer, length, inner)) if x.shape[:2] != (outer, length) else x for x in views]
        body = partial(_tiles, views, states, len(outs), reset is not None, reverse)
        parallel_for(body, outer, grain=grain, workers=workers)


def _unrepeated(x):
    """`x` of shape (outer, T, inner) without the outer and time axes it is only broadcast along."""
    return x[tuple(slice(1) if x.strides[i] == 0 else slice(None) for i in (0, 1))]


def _columns(kernel, views, states, n_ins, reverse, k, lo, hi):
    """Columns `lo` to `hi` of sequence `k`."""
    (_, length, width), v = views[-1].shape, [x[k : k + 1] if len(x) > 1 else x for x in views]
    strides = tuple(width if x.shape[1] == length else 0 for x in v[:3])
    v, s = [x.reshape(-1) for x in v], [x[k : k + 1].reshape(-1) for x in states]
    kernel(*v[:n_ins], *s[:-1], *v[n_ins:], s[-1], strides, (length, width), lo, hi, reverse)


def _run_columns(kernel, outer, inner, length, workers):
    """Threads take whole sequences where they divide evenly, else groups of columns of them."""
    threads = resolve_workers(workers)
    groups = 1 if outer % threads == 0 or outer >= 4 * threads else max(1, min(threads, inner // 16))
    edges = [inner * g // groups for g in range(groups + 1)]

    def body(lo, hi):
        for unit in range(lo, hi):
            k, g = divmod(unit, groups)
            kernel(k, edges[g], edges[g + 1])

    parallel_for(body, outer * groups, grain=max(1, _GRAIN * groups // (length * inner)), workers=workers)


def _tiles(views, states, n_outs, has_reset, reverse, lo, hi):
    """Rows `lo` to `hi` of the outer axis through contiguous tiles, time last, in the arithmetic's dtype."""
    length, inner = views[0].shape[1:]
    back, compute = n_outs == 2, states[0].dtype
    name = "rows" + ("_reset" if has_reset else "") + ("_back" if back else "")
    kernel = getattr(scan_rows, name)
    rows, width = max(1, _TILE // (length * inner)), min(inner, max(1, _TILE // length))
    for k in range(lo, hi, rows):
        for d in range(0, inner, width):
            part = np.s_[k : min(k + rows, hi), :, d : d + width]
            tiles = [np.swapaxes(x[part], 1, 2) for x in views]
            ins = [np.ascontiguousarray(x, None if x.dtype == bool else compute).reshape(-1) for x in tiles[:-n_outs]]
            outs = [np.empty(x.size, compute) for x in tiles[-n_outs:]]
            ends = [np.ascontiguousarray(s[part[0], part[2]]).reshape(-1) for s in states]
            kernel(*ins, *ends[:-1], *outs, ends[-1], length, reverse)
            for x, y in zip(tiles[-n_outs:], outs, strict=True):
                x[...] = y.reshape(x.shape)
            carried = states[-1][part[0], part[2]]
            carried[...] = ends[-1].reshape(carried.shape)


def _run_long(a, b, h, states, reverse, workers):
    """Rows of many blocks. Several rows: each on one thread. Few rows: threads share each of them."""
    count, length = len(a), a.shape[1]
    n_blocks = -(-length // _BLOCK)
    flat = [x.reshape(count, length) for x in (a, b, h)]
    threads = min(resolve_workers(workers), n_blocks)
    if count >= threads:

        def body(lo, hi):
            for r in range(lo, hi):
                carries = np.full(n_blocks + 1, states[r, 0])
                scan_rows.blocks(*(x[r] for x in flat), carries, _BLOCK, 0, n_blocks, reverse)

        parallel_for(body, count, workers=workers)
        return
    for r in range(count):
        _share_row(*(x[r] for x in flat), states[r, 0], n_blocks, threads, reverse)


def _share_row(a, b, h, start, n_blocks, threads, reverse):
    """One row on several threads.

    One thread scans the first blocks while the others compose the maps of the next ones, which costs half as much
    memory traffic; then the state before every block but the last range's is known and all threads scan. With the
    first range a share 1 / (2 threads + 1) and all later ones equal, both phases are balanced.
    """
    carries, maps = np.full(n_blocks + 1, start), np.empty((n_blocks, 2), a.dtype)
    first = max(1, round(n_blocks / (2 * threads + 1)))
    edges = [first + (n_blocks - first) * i // threads for i in range(threads + 1)]
    compose = partial(scan_rows.reduce_blocks, a, b, maps, _BLOCK)
    run = partial(scan_rows.blocks, a, b, h, carries, _BLOCK)

    def head(lo, hi):
        for i in range(lo, hi):
            if i == 0:
                run(0, first, reverse)
            else:
                compose(edges[i - 1], edges[i], reverse)

    def rest(lo, hi):
        for i in range(lo, hi):
            run(edges[i], edges[i + 1], reverse)

    parallel_for(head, threads, workers=threads)
    k = first
    while (k := scan_rows.chain_blocks(maps, carries, k, edges[-2])) < edges[-2]:
        run(k, k + 1, reverse)  # this block's map cannot be used: its states have to be known first
        k += 1
    parallel_for(rest, threads, workers=threads)
