"""Log-space scans on the CPU: tiles of (times, channels) that stay in the cache while several loops run over them."""

from functools import partial

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu import scan as diagonal
from linscan.engines.cpu.pool import parallel_for, resolve_workers
from linscan.engines.cpu.semiring_rows import maxima, sums
from linscan.engines.reference.semiring_scan import share, weights

_GRAIN = 1 << 13  # elements a thread must get for its hand-over to pay
_TILE = 1 << 13  # elements of a tile
_CHANNELS = 256  # of a tile; as many rows where time is the last axis


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
    views = [x.reshape(outer, length, inner) for x in [*ins, *outs]]
    starts = None if reset is None else reset.reshape(outer, length, inner)
    threads = resolve_workers(workers)
    width = inner if inner <= _CHANNELS and outer >= threads else min(_CHANNELS, max(16, -(-inner // threads)))
    rows = max(1, min(_CHANNELS // width, -(-outer // threads)))
    across = -(-inner // width)
    tiles = partial(_channels, work, views, len(ins), starts, states, reverse)

    def body(lo: int, hi: int) -> None:
        for unit in range(lo, hi):
            k, d = divmod(unit, across)
            tiles(slice(k * rows, min(k * rows + rows, outer)), slice(d * width, min(d * width + width, inner)))

    grain = max(1, _GRAIN // (length * rows * width))
    parallel_for(body, -(-outer // rows) * across, grain=grain, workers=workers)


def _channels(work, views, n_ins, starts, states, reverse, rows, columns):
    """All times of some rows and columns, tile after tile."""
    length = views[0].shape[1]
    carried = [x[rows, columns].reshape(-1) for x in states]
    times = max(1, _TILE // carried[0].size)
    edges = range(0, length, times)
    compute = carried[0].dtype
    for t in reversed(edges) if reverse else edges:
        part = rows, slice(t, min(t + times, length)), columns
        given = [_times_first(x[part], compute) for x in views[:n_ins]]
        begins = None if starts is None else _times_first(starts[part], np.dtype(bool))
        for x, y in zip(views[n_ins:], work(given, begins, carried, reverse), strict=True):
            there = x[part].swapaxes(0, 1)
            there[...] = y.reshape(there.shape)


def _times_first(x, dtype):
    x = x.swapaxes(0, 1)
    return np.ascontiguousarray(x, dtype).reshape(len(x), x.shape[1] * x.shape[2])


def _maxima(given, starts, carried, reverse):
    c = np.empty(given[1].shape, given[1].dtype)
    maxima(given[0], given[1], starts, carried[0], c, None, reverse)
    return [c]


def _logarithms(given, starts, carried, reverse):
    """The sums' logarithms of one tile, and with values their means."""
    a, b, *values = given
    c, u = np.empty(b.shape, b.dtype), np.empty(b.shape, b.dtype)
    maxima(a, b, starts, carried[0], c, u, reverse)
    np.exp(u, out=u)
    means = [np.empty(b.shape, b.dtype)] if values else []
    last = (values[0], carried[2], means[0], np.empty_like(carried[2])) if values else (None, None, None, None)
    sums(b, c, u, carried[1], *last, reverse)
    np.log(u, out=u)
    np.add(c, u, out=c)
    return [c, *means]
