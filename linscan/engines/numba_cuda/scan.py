"""First-order scans as a Numba-CUDA kernel: Blelloch's scan in shared memory, tile after tile of a row.

A step of ``h[t] = a[t] h[t-1] + b[t]`` is the map ``h -> a h + b``. Maps compose to maps, and composing is associative:
that is what makes the recurrence parallel. A block owns a row and walks its tiles. In a tile,

1. every thread composes the maps of its own CHUNK neighbouring steps, one after the other;
2. the threads' composites are scanned in a balanced tree in shared memory: an up-sweep composes pairs, pairs of pairs,
   and so on up to the whole tile; a down-sweep hands every thread the composite of all threads before it;
3. that, applied to the state that entered the tile, is the state the thread begins with, and it runs its steps again.

A reset cuts the past off by selection, not by a = 0: NaN and inf must not survive it. Where decays above 1 multiply
up, a composite overflows, or what it gives is the small difference of large numbers, although the plain loop may do
well: there one thread runs the tile in order.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import cuda

from linscan._arrays import Array, namespace
from linscan.engines.numba_cuda.launch import THREADS, folded, launch

CHUNK = 4  # steps of a thread
TILE = THREADS * CHUNK
_TAME = 1024.0  # composites with a larger decay are not used
_ROWS = 2**31 - 1  # of a grid; blocks take several rows beyond it


def scan(a: Array, b: Array, h0: Array | None, *, axis, reverse, reset, out, workers) -> Array:
    """See `linscan.ops.scan.scan`; `a` and `b` are broadcast, of one dtype."""
    xp = namespace(b)
    h = xp.empty(b.shape, b.dtype)
    if h.size:
        rows = h.size // h.shape[axis]
        first = xp.zeros(rows, h.dtype) if h0 is None else h0.reshape(rows)
        cut = xp.broadcast_to(xp.zeros((), np.uint8), h.shape) if reset is None else reset.view(np.uint8)
        inputs, result = [folded(x, axis) for x in (a, b, cut)], folded(h, axis)
        if reverse:
            inputs, result = [x[:, ::-1] for x in inputs], result[:, ::-1]
        launch(_kernel(h.dtype), min(rows, _ROWS), (*inputs, first), (result,))
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


@cuda.jit(device=True)
def compose(a2, b2, cut2, a1, b1, cut1):
    """First (a1, b1), then (a2, b2): ``h -> a2 (a1 h + b1) + b2``. After a cut the past does not count."""
    if cut2:
        return a2, b2, cut2
    return a2 * a1, a2 * b1 + b2, cut1


@cuda.jit(device=True)
def run(a, b, cut, outer, inner, first, last, h, out, write):
    """The plain loop over steps first to last, from the state h; writes the states if asked."""
    for t in range(first, last):
        h = b[outer, t, inner] if cut[outer, t, inner] else a[outer, t, inner] * h + b[outer, t, inner]
        if write:
            out[outer, t, inner] = h
    return h


@cache
def _kernel(dtype: np.dtype) -> Any:
    number = numba.from_dtype(dtype)
    kind = dtype.type

    @cuda.jit
    def scan_rows(a, b, cut, first, h):
        tree_a = cuda.shared.array(THREADS, number)
        tree_b = cuda.shared.array(THREADS, number)
        tree_cut = cuda.shared.array(THREADS, numba.uint8)
        carry = cuda.shared.array(1, number)
        i, length, width = cuda.threadIdx.x, h.shape[1], h.shape[2]
        for row in range(cuda.blockIdx.x, h.shape[0] * width, cuda.gridDim.x):
            outer, inner = row // width, row % width
            if i == 0:
                carry[0] = first[row]
            for begin in range(0, length, TILE):
                own = min(begin + i * CHUNK, length)
                end = min(own + CHUNK, length)

                pa, pb, pcut = kind(1), kind(0), False
                for t in range(own, end):
                    pa, pb, pcut = compose(
                        a[outer, t, inner], b[outer, t, inner], cut[outer, t, inner] != 0, pa, pb, pcut
                    )
                tree_a[i], tree_b[i], tree_cut[i] = pa, pb, pcut
                cuda.syncthreads()

                step = 1
                while step < THREADS:  # up: node i becomes the composite of the 2 step threads that end with it
                    if (i + 1) % (2 * step) == 0:
                        j = i - step
                        tree_a[i], tree_b[i], tree_cut[i] = compose(
                            tree_a[i], tree_b[i], tree_cut[i] != 0, tree_a[j], tree_b[j], tree_cut[j] != 0
                        )
                    step *= 2
                    cuda.syncthreads()
                if i == THREADS - 1:
                    tree_a[i], tree_b[i], tree_cut[i] = kind(1), kind(0), False  # nothing comes before the tile
                cuda.syncthreads()
                step = THREADS // 2
                while step > 0:  # down: what comes before a node comes before its left half; then that half, its right
                    if (i + 1) % (2 * step) == 0:
                        j = i - step
                        la, lb, lcut = tree_a[j], tree_b[j], tree_cut[j] != 0
                        ba, bb, bcut = tree_a[i], tree_b[i], tree_cut[i] != 0
                        tree_a[j], tree_b[j], tree_cut[j] = ba, bb, bcut
                        tree_a[i], tree_b[i], tree_cut[i] = compose(la, lb, lcut, ba, bb, bcut)
                    step //= 2
                    cuda.syncthreads()

                start = tree_b[i] if tree_cut[i] != 0 else tree_a[i] * carry[0] + tree_b[i]
                finite = abs(start - start) == 0
                good = finite and (tree_cut[i] != 0 or abs(tree_a[i]) <= _TAME)
                if cuda.syncthreads_or(0 if good else 1):
                    if i == 0:
                        state = carry[0]
                        for k in range(THREADS):
                            tree_b[k] = state
                            k_begin = min(begin + k * CHUNK, length)
                            state = run(a, b, cut, outer, inner, k_begin, min(k_begin + CHUNK, length), state, h, False)
                    cuda.syncthreads()
                    start = tree_b[i]
                state = run(a, b, cut, outer, inner, own, end, start, h, True)
                cuda.syncthreads()
                if i == THREADS - 1:
                    carry[0] = state
                cuda.syncthreads()

    return scan_rows
