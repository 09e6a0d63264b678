"""Log-space scans on the CPU: tiles that stay in the cache while several loops run over them.

Arrays are seen as (outer, T, inner). With many inner channels a tile is (times, channels), else (rows, times). What is
contiguous and of the arithmetic's dtype is read and written in place.
"""

from functools import partial

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu import scan as diagonal
from linscan.engines.cpu.pool import parallel_for, resolve_workers
from linscan.engines.cpu.semiring_rows import maxima_columns, maxima_rows, sums_columns, sums_rows
from linscan.engines.reference.semiring_scan import share, weights

_GRAIN = 1 << 13  # elements a thread must get for its hand-over to pay
_TILE = 1 << 14  # elements of a tile
_WIDE = 16  # inner channels from which a time step is worth a vector operation
_CHANNELS = 1024  # of a tile, at most


def max_scan(a: Array, b: Array, h0: Array | None, *, axis, reverse, reset, workers) -> Array:
    """See `linscan.ops.max_scan.max_scan`."""
    h = np.empty(b.shape, b.dtype)
    _run(_maxima, [a, b], [h], [_state(h0, -np.inf, h, axis)], reset, axis, reverse, workers)
    return h


def lse_scan(a: Array, b: Array, h0: Array | None, *, axis, reverse, reset, workers) -> Array:
    """See `linscan.ops.lse_scan.lse_scan`."""
    h = np.empty(b.shape, b.dtype)
    states = [_state(h0, -np.inf, h, axis), _state(None, 1.0, h, axis)]
    _run(_logarithms, [a, b], [h], states, reset, axis, reverse, workers)
    return h


def softmax_average(s: Array, v: Array, w: Array, z0, y0, *, axis, reverse, reset, workers) -> tuple[Array, Array]:
    """See `linscan.ops.softmax_average.softmax_average`; `v` is of the shape of the means, `s` and `w` of the sums."""
    options = {"axis": axis, "reverse": reverse, "reset": reset, "workers": workers}
    if s.shape != v.shape:
        return _average_vectors(s, v, w, z0, y0, **options)
    y, z = np.empty(v.shape, v.dtype), np.empty(s.shape, s.dtype)
    states = [_state(z0, -np.inf, z, axis), _state(None, 1.0, z, axis), _state(y0, 0.0, y, axis)]
    _run(_logarithms, [w, s, v], [z, y], states, reset, axis, reverse, workers)
    return y, z


def _average_vectors(s, v, w, z0, y0, *, axis, reverse, reset, workers):
    """Scores that serve several values: their weights once, then a scan of the values."""
    options = {"axis": axis, "reverse": reverse, "workers": workers}
    z = lse_scan(w, s, z0, reset=reset, **options)
    compute, length = accum_dtype(v.dtype), s.shape[axis]
    sums, score, decay = (np.moveaxis(x, axis, 0).astype(compute, copy=False) for x in (z, s, w))
    first = np.full(sums.shape[1:], -np.inf, compute) if z0 is None else z0.astype(compute)
    order = [sums[1:], first[None]] if reverse else [first[None], sums[:-1]]
    with np.errstate(invalid="ignore"):
        carried = decay + np.concatenate(order)[:length]
    if reset is not None:
        carried = np.where(np.moveaxis(reset, axis, 0), -np.inf, carried)
    p, q = (np.moveaxis(x, 0, axis) for x in weights(carried, score))
    forgets = np.broadcast_to(p == 0, v.shape) if (p == 0).any() else None
    values = share(q, v.astype(compute, copy=False))
    start = None if y0 is None else y0.astype(compute, copy=False)
    y = diagonal.scan(np.broadcast_to(p, v.shape), values, start, reset=forgets, out=None, **options)
    return y.astype(v.dtype, copy=False), z


def _state(first, empty, like, axis):
    """The states before the first step, (outer, inner), in the arithmetic's dtype; always a new array."""
    outer, inner = (int(np.prod(x, dtype=np.intp)) for x in (like.shape[:axis], like.shape[axis + 1 :]))
    state = np.full((outer, inner), empty, accum_dtype(like.dtype))
    if first is not None:
        state.reshape(first.shape)[...] = first
    return state


def _run(work, ins, outs, states, reset, axis, reverse, workers):
    """Call `work` on tiles of all channels, in the order of time; what is carried stands in `states`."""
    if not outs[0].size:
        return
    (outer, inner), length = states[0].shape, outs[0].shape[axis]
    views = [x.reshape(outer, length, inner) for x in [*ins, *([] if reset is None else [reset]), *outs]]
    threads = resolve_workers(workers)
    if inner < _WIDE:
        views, rows, width = [x.swapaxes(1, 2) for x in views], max(1, _TILE // (length * inner)), inner
        rows = min(rows, -(-outer // threads))
    else:
        rows, width = 1, min(inner, _CHANNELS if outer >= threads else max(_WIDE, -(-inner // threads)))
    across = -(-inner // width)
    tiles = partial(_channels, partial(work, inner < _WIDE, reverse), views, len(ins), reset is not None, reverse)

    def body(lo: int, hi: int) -> None:
        for unit in range(lo, hi):
            k, d = divmod(unit, across)
            part = np.s_[k * rows : min(k * rows + rows, outer), d * width : min(d * width + width, inner)]
            carried = [x[part].reshape(-1) for x in states]
            tiles(carried, inner < _WIDE, part)

    grain = max(1, _GRAIN // (length * rows * width))
    parallel_for(body, -(-outer // rows) * across, grain=grain, workers=workers)


def _channels(work, views, n_ins, has_reset, reverse, carried, time_last, part):
    """All times of some rows and columns, tile after tile."""
    length, compute, count = views[0].shape[2 if time_last else 1], carried[0].dtype, carried[0].size
    times = max(1, _TILE // count)
    edges = range(0, length, times)
    for t in reversed(edges) if reverse else edges:
        span = slice(t, min(t + times, length))
        tile = (*part, span) if time_last else (part[0], span, part[1])
        shape = (count, span.stop - t) if time_last else (span.stop - t, count)
        given = [np.ascontiguousarray(x[tile], compute).reshape(shape) for x in views[:n_ins]]
        starts = np.ascontiguousarray(views[n_ins][tile]).reshape(shape) if has_reset else None
        there = [x[tile] for x in views[n_ins + has_reset :]]
        direct = [x.dtype == compute and x.flags.c_contiguous for x in there]
        outs = [x.reshape(shape) if d else np.empty(shape, compute) for x, d in zip(there, direct, strict=True)]
        work(given, starts, carried, outs)
        for x, y, d in zip(there, outs, direct, strict=True):
            if not d:
                x[...] = y.reshape(x.shape)


def _maxima(time_last, reverse, given, starts, carried, outs):
    run = maxima_rows if time_last else maxima_columns
    run(*given, starts, *carried, *outs, None, reverse)


def _logarithms(time_last, reverse, given, starts, carried, outs):
    """The sums' logarithms of one tile, and with values their means."""
    maxima, sums = (maxima_rows, sums_rows) if time_last else (maxima_columns, sums_columns)
    (a, b, *values), (c, *means), u = given, outs, np.empty_like(given[1])
    maxima(a, b, starts, carried[0], c, u, reverse)
    np.exp(u, out=u)
    last = (values[0], carried[2], means[0], np.empty_like(carried[2])) if values else (None,) * 4
    sums(b, c, u, carried[1], *last, reverse)
    np.log(u, out=u)
    np.add(c, u, out=c)
