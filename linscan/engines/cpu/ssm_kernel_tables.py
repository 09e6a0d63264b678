"""What the diagonal kernel and its gradient share on the CPU: views, the work plan, and the small matrix product.

The product keeps three rows in flight over four table rows at a time, which is what fits the vector registers, and its
sums have the same order for every row. BLAS would be no faster here and bring threads of its own.
"""

import numpy as np

from linscan.engines.cpu.jit import jit

ROWS = 3  # rows the product computes side by side
_TABLE = 1 << 17  # elements of the table of a^r: half a level-2 cache
_GRAIN = 1 << 20  # multiply-adds a thread must get for its hand-over to pay


def planar(x):
    """(channels, states, 1 or 2) float64: the real and imaginary parts."""
    wide = np.ascontiguousarray(x, np.complex128 if x.dtype.kind == "c" else np.float64)
    return wide.view(np.float64).reshape(*x.shape, -1)


def by_growth(a, length, dtype):
    """Channels for the tables, and for the plain loop: where |a|^length is so large that tables could overflow."""
    with np.errstate(all="ignore"):
        size = np.sqrt(np.square(a).sum(axis=-1)).max(axis=-1, initial=1.0)
        loops = np.log2(size) * length > (60 if dtype.itemsize == 4 else 500)  # false for NaN, which tables carry too
    return np.flatnonzero(~loops), np.flatnonzero(loops)


def block_length(length, width):
    """The length R of the table of a^r: about sqrt(length), a multiple of 16, small enough to stay in cache."""
    fits = max(16, _TABLE // max(1, width) // 16 * 16)
    return max(16, min(int(np.ceil(np.sqrt(length) / 16)) * 16, fits))


def grain(work):
    """Items of `work` multiply-adds each that a thread must get."""
    return 1 + _GRAIN // max(1, work)


@jit
def product(rows, q, table, sums):
    """sums[i] = rows[q + i] @ table for three rows; the inner length is a multiple of four."""
    s0, s1, s2 = sums[0], sums[1], sums[2]
    p0, p1, p2 = rows[q], rows[q + 1], rows[q + 2]
    for r in range(len(s0)):
        s0[r], s1[r], s2[r] = 0, 0, 0
    for m in range(0, len(p0), 4):
        t0, t1, t2, t3 = table[m], table[m + 1], table[m + 2], table[m + 3]
        a0, a1, a2, a3 = p0[m], p0[m + 1], p0[m + 2], p0[m + 3]
        b0, b1, b2, b3 = p1[m], p1[m + 1], p1[m + 2], p1[m + 3]
        c0, c1, c2, c3 = p2[m], p2[m + 1], p2[m + 2], p2[m + 3]
        for r in range(len(s0)):
            x0, x1, x2, x3 = t0[r], t1[r], t2[r], t3[r]
            s0[r] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
            s1[r] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
            s2[r] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
