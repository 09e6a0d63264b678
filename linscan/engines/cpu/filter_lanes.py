"""Cascades of short filters, many rows side by side in the lanes of one vector.

A recursive filter waits for its own last output: two multiply-adds per sample and section, however few rows there are.
One 64-byte vector holds the same sample of 16 (float32) or 8 (float64) rows, so they all wait together, and up to four
sections of a cascade follow each other closely enough to wait together too. Rows are brought into a tile of vectors
that stays in the first-level cache while the cascade passes over it. Lanes without a row are computed and ignored.
Every row sees the same additions and multiply-adds in the same order, whatever the number of lanes: its bits never
depend on its company.
"""

import numpy as np

from linscan.engines.cpu.filter_simd import advance, bring, bring_few, put_back, put_back_few
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals

VECTOR_BYTES = 64
MAX_ORDER = 8  # beyond, coefficients and state no longer fit into registers
FUSED = 4  # sections run in one loop
_TIMES = 128  # samples of a tile: long runs in memory, and still a quarter of the first-level cache


def scratch_for(coef, state, lanes):
    """Tile, coefficients and state of one group of rows, as vectors."""
    return tuple(np.zeros((n, lanes), state.dtype) for n in (_TIMES, coef.shape[2], state.shape[2]))


@jit
def cascade(x, y, coef, state, scratch, shape, time_last, skip, width, lo, hi):
    """Every section of each row's filter, for the groups of `width` rows in ``range(lo, hi)``.

    `x` and `y` are (1, rows, T) if `time_last`, otherwise (blocks, T, rows); `coef` is (blocks, rows, sections x taps),
    and `state` (blocks, rows, sections x order) is updated. `scratch` is this thread's. `shape` holds four tuples whose
    lengths are those of b, of a[1:], of the sections run together, and of the vectors (1 or all lanes). The first tile
    is `skip` samples short.
    """
    mode = flush_subnormals()
    tile, c, z = scratch
    forward, back, together, lanes = shape
    across, sections, fused = coef.shape[1], len(c) // (len(forward) + len(back)), len(together)
    length, parts = x.shape[2 if time_last else 1], -(-across // width)
    for group in range(lo, hi):
        block, first = group // parts, group % parts * width
        rows = min(width, across - first)
        bring_few(coef, (block, 0, first), True, c, len(c), rows, lanes)
        bring_few(state, (block, 0, first), True, z, len(z), rows, lanes)
        for edge in range(-skip, length, len(tile)):
            start = max(edge, 0)
            n, place = min(edge + len(tile), length) - start, (block, start, first)
            bring(x, place, time_last, tile, n, rows, lanes)
            for s in range(0, sections - fused + 1, fused):
                advance(tile, c, z, s, n, forward, back, together, lanes)
            for s in range(sections - sections % fused, sections):
                advance(tile, c, z, s, n, forward, back, (0,), lanes)
            put_back(y, place, time_last, tile, n, rows, lanes)
        put_back_few(state, (block, 0, first), True, z, len(z), rows, lanes)
    restore_subnormals(mode)
