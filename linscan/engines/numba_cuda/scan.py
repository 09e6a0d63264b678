"""First-order scans as a Numba-CUDA kernel, which `scan_tiles` holds: here its memory is laid out and it is started."""

from linscan._arrays import Array, namespace
from linscan.engines.numba_cuda.launch import folded, launch
from linscan.engines.numba_cuda.scan_tiles import TILE, kernel

_BLOCKS = 2**31 - 1  # of a grid; blocks take several tiles beyond it


def scan(a: Array, b: Array, h0: Array | None, *, axis, reverse, reset, out, workers) -> Array:
    """See `linscan.ops.scan.scan`; `a` and `b` are broadcast, of one dtype."""
    xp = namespace(b)
    h = xp.empty(b.shape, b.dtype)
    if h.size:
        rows = h.size // h.shape[axis]
        first = xp.zeros(rows, h.dtype) if h0 is None else h0.reshape(rows)
        cut = xp.broadcast_to(xp.zeros((), xp.uint8), h.shape) if reset is None else reset.view(xp.uint8)
        inputs, result = [folded(x, axis) for x in (a, b, cut)], folded(h, axis)
        if reverse:
            inputs, result = [x[:, ::-1] for x in inputs], result[:, ::-1]
        slots = rows * -(-h.shape[axis] // TILE)
        flags = [xp.zeros(slots, xp.int32) for _ in range(2)]
        maps, states = xp.empty((slots, 2), h.dtype), xp.empty(slots, h.dtype)
        told = (xp.zeros(1, xp.int64), maps, flags[0], states, flags[1])
        launch(kernel(h.dtype), min(slots, _BLOCKS), (*inputs, first), (result, *told))
    if out is None:
        return h
    out[...] = h
    return out


def scan_pullback(a: Array, h: Array, h0: Array | None, dh: Array, *, axis, reverse, reset, workers):
    """See `linscan.ops.scan.scan_vjp`: the same scan in the other direction, with the decays of the step after."""
    xp = namespace(h)
    a, h, dh = (xp.moveaxis(x, axis, 0)[:: -1 if reverse else 1] for x in (a, h, dh))
    if reset is not None:
        a = xp.where(xp.moveaxis(reset, axis, 0)[:: -1 if reverse else 1], 0, a)
    first = xp.zeros(h.shape[1:], h.dtype) if h0 is None else h0
    if not h.size:
        empty = xp.zeros(h.shape, h.dtype)
        return xp.moveaxis(empty, 0, axis), xp.moveaxis(empty, 0, axis), xp.zeros(h.shape[1:], h.dtype)
    after = xp.concatenate([xp.conj(a[1:]), xp.zeros_like(a[:1])])
    db = scan(after, dh, None, axis=0, reverse=True, reset=_cuts(reset, axis, reverse), out=None, workers=workers)
    before = xp.concatenate([first[None], h[:-1]])
    da, dh0 = xp.conj(before) * db, xp.conj(a[0]) * db[0]
    if reset is not None:
        starts = xp.moveaxis(reset, axis, 0)[:: -1 if reverse else 1]
        da, dh0 = xp.where(starts, 0, da), xp.where(starts[0], 0, dh0)
    da, db = (xp.moveaxis(x[:: -1 if reverse else 1], 0, axis) for x in (da, db))
    return da, db, dh0


def _cuts(reset: Array | None, axis: int, reverse: bool) -> Array | None:
    """Where the gradient stops flowing back: a step before each reset."""
    if reset is None:
        return None
    xp = namespace(reset)
    starts = xp.moveaxis(reset, axis, 0)[:: -1 if reverse else 1]
    return xp.concatenate([starts[1:], xp.zeros_like(starts[:1])])
