"""Products of tall matrices, a block of rows at a time, from tiles of `linscan.engines.cpu.gemm`."""

import numpy as np

from linscan.engines.cpu.gemm import COLUMNS, ROWS, tile
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals

BLOCK = 64  # rows of a product made at a time
CHUNK = 256  # rows summed at a time
_DEEP = 256  # of the inner index, so that a panel of weights stays in the first-level cache


@jit
def product(x, panels, shift, y, sizes, lo, hi):
    """Blocks `lo` to `hi` of the rows of ``y = x w + shift``; `panels` holds w by groups of columns."""
    mode = flush_subnormals()
    n, inner, width = sizes
    wide = len(shift)
    made, last = np.empty(BLOCK * wide, x.dtype), np.zeros(BLOCK * inner, x.dtype)
    for block in range(lo, hi):
        first = block * BLOCK
        rows, a, start = min(BLOCK, n - first), x, first * inner
        if rows < BLOCK:
            last[: rows * inner] = x[start : start + rows * inner]
            a, start = last, 0
        for deep in range(0, inner, _DEEP):
            depth = min(_DEEP, inner - deep)
            for j in range(0, wide, COLUMNS):
                panel = j * inner + deep * COLUMNS
                for i in range(0, rows, ROWS):
                    places = (start + i * inner + deep, inner, 1, panel, COLUMNS, i * wide + j, wide)
                    tile(a, panels, made, places, depth, deep > 0)
        for i in range(rows):
            out, row = y[(first + i) * width :], made[i * wide :]
            for j in range(width):
                out[j] = row[j] + shift[j]
    restore_subnormals(mode)


@jit
def outer(x, dy, dw, db, widths, first, end):
    """`dw` and `db` grow by the products of rows of `x` with rows of `dy`, and by the latter, from `first` to `end`."""
    mode = flush_subnormals()
    inner, width = widths
    tall, wide = -(-inner // ROWS) * ROWS, len(db)
    left, right = np.zeros(CHUNK * tall, x.dtype), np.zeros(CHUNK * wide, x.dtype)
    for lo in range(first, end, CHUNK):
        rows = min(CHUNK, end - lo)
        pack(x[lo * inner :], left, rows, inner, ROWS)
        pack(dy[lo * width :], right, rows, width, COLUMNS)
        for i in range(rows):
            row = dy[(lo + i) * width :]
            for j in range(width):
                db[j] += row[j]
        for j in range(0, wide, COLUMNS):
            for i in range(0, tall, ROWS):
                places = (i * CHUNK, 1, ROWS, j * CHUNK, COLUMNS, i * wide + j, wide)
                tile(left, right, dw, places, rows, True)
    restore_subnormals(mode)


@jit
def pack(x, out, rows, width, group):
    """Rows in groups of columns, each group in memory of its own."""
    for first in range(0, width, group):
        some = min(group, width - first)
        for i in range(rows):
            a, b = x[i * width + first :], out[first * CHUNK + i * group :]
            for j in range(some):
                b[j] = a[j]
