"""Cascades of short filters, many rows side by side in the lanes of one vector.

A recursive filter waits for its own last output: two multiply-adds per sample and section, however few rows there are.
One 64-byte vector holds the same sample of 16 (float32) or 8 (float64) rows, so they all wait together, and up to four
sections of a cascade follow each other closely enough to wait together too. Rows are brought into a tile of vectors
that stays in the first-level cache while the cascade passes over it. Lanes without a row are computed and ignored.
Every row sees the same additions and multiply-adds in the same order, whatever the number of lanes: its bits never
depend on its company.
"""

import numpy as np

from linscan.engines.cpu.filter_simd import advance, transpose
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals

VECTOR_BYTES = 64
MAX_ORDER = 8  # beyond, coefficients and state no longer fit into registers
FUSED = 4  # sections run in one loop
_TIMES = 128  # samples of a tile: long runs in memory, and still a quarter of the first-level cache


@jit
def _spread(source, target, w):
    for s in range(source.shape[0]):
        for k in range(source.shape[1]):
            target[s, k, w] = source[s, k]


@jit
def _gather(source, w, target):
    for s in range(target.shape[0]):
        for k in range(target.shape[1]):
            target[s, k] = source[s, k, w]


@jit
def _load(x, tile, block, first, rows, start, n, time_last, lanes):
    """Samples ``start`` to ``start + n`` of some rows into the columns of `tile`."""
    side = len(lanes)
    if not time_last:
        for t in range(n):
            line = x[block, start + t, first : first + rows]
            for w in range(rows):
                tile[t, w] = line[w]
        return
    done = 0
    if rows == side and side > 1 and x.strides[2] == x.itemsize:
        done = n // side * side
        for t in range(0, done, side):
            here = start + t
            transpose(x[0, first : first + side, here : here + side], tile[t : t + side], lanes)
    for w in range(rows):
        line = x[0, first + w, start : start + n]
        for t in range(done, n):
            tile[t, w] = line[t]


@jit
def _store(tile, y, block, first, rows, start, n, time_last, lanes):
    """The inverse of `_load`."""
    side = len(lanes)
    if not time_last:
        for t in range(n):
            line = y[block, start + t, first : first + rows]
            for w in range(rows):
                line[w] = tile[t, w]
        return
    done = 0
    if rows == side and side > 1 and y.strides[2] == y.itemsize:
        done = n // side * side
        for t in range(0, done, side):
            here = start + t
            transpose(tile[t : t + side], y[0, first : first + side, here : here + side], lanes)
    for w in range(rows):
        line = y[0, first + w, start : start + n]
        for t in range(done, n):
            line[t] = tile[t, w]


def scratch_for(coef, state, lanes):
    """Tile, coefficients and state of one group of rows, as vectors."""
    tile = np.zeros((_TIMES, lanes), state.dtype)
    return tile, np.zeros((*coef.shape[2:], lanes), state.dtype), np.zeros((*state.shape[2:], lanes), state.dtype)


@jit
def cascade(x, y, coef, state, scratch, shape, time_last, width, lo, hi):
    """Every section of each row's filter, for the groups of `width` rows in ``range(lo, hi)``.

    `x` and `y` are (1, rows, T) if `time_last`, otherwise (blocks, T, rows); `coef` is (blocks, rows, sections, taps),
    and `state` (blocks, rows, sections, order) is updated. `scratch` is this thread's. `shape` holds four tuples whose
    lengths are those of b, of a[1:], of the sections run together, and of the vectors (1 or all lanes).
    """
    mode = flush_subnormals()
    tile, c, z = scratch
    forward, back, together, lanes = shape
    across, sections, fused = coef.shape[1], coef.shape[2], len(together)
    length, parts = x.shape[2 if time_last else 1], -(-across // width)
    for group in range(lo, hi):
        block, first = group // parts, group % parts * width
        rows = min(width, across - first)
        for w in range(rows):
            _spread(coef[block, first + w], c, w)
            _spread(state[block, first + w], z, w)
        for start in range(0, length, tile.shape[0]):
            n = min(tile.shape[0], length - start)
            _load(x, tile, block, first, rows, start, n, time_last, lanes)
            for s in range(0, sections - fused + 1, fused):
                advance(tile, c[s : s + fused], z[s : s + fused], n, forward, back, together, lanes)
            for s in range(sections - sections % fused, sections):
                advance(tile, c[s : s + 1], z[s : s + 1], n, forward, back, (0,), lanes)
            _store(tile, y, block, first, rows, start, n, time_last, lanes)
        for w in range(rows):
            _gather(z, w, state[block, first + w])
    restore_subnormals(mode)
