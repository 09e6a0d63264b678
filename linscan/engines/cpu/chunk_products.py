"""Products of queries and keys of one chunk under decay: a lower triangle for each set of queries and each of keys.

Sets stand below each other: `xs` (sets CHUNK, width) are queries, or whatever else reads what keys wrote before; `kts`
(sets width, CHUNK) keys, turned; `products` (sets of keys, sets of queries, CHUNK; CHUNK). Queries are left as decayed
since the chunk's beginning, keys until its end.
"""

from linscan.engines.cpu.chunk_vectors import near
from linscan.engines.cpu.chunks import BLOCK, CHUNK, triangle, widen
from linscan.engines.cpu.gemm import FULL, LOWER_OUT, apart, gemm
from linscan.engines.cpu.jit import jit


@jit
def scalar(xs, kts, products, tables, totals, rows):
    """One decay per step: the triangle of decays, into every product."""
    apart()
    es, since, until, w, rows_of = tables
    wide, sets = xs.shape[1], len(xs) // CHUNK
    for p in range(len(products) // CHUNK):
        x, y, size = (p % sets * CHUNK * wide, wide, 1), (p // sets * wide * CHUNK, CHUNK), (rows, rows, wide)
        gemm(xs, x, kts, y, products, (p * CHUNK * CHUNK, CHUNK), size, LOWER_OUT, False)
    triangle(es, since, until, totals, w, rows_of[0])
    widen(since, until, totals, rows_of[1], rows_of[2])
    for p in range(len(products)):
        row, weight = products[p], w[p % CHUNK]
        for s in range((p % CHUNK // BLOCK + 1) * BLOCK):  # beyond, nothing is wanted
            row[s] *= weight[s]
    factors = rows_of[0]
    for s in range(CHUNK):
        factors[s] = until[s, 0]
    for d in range(len(kts)):
        key = kts[d]
        for s in range(CHUNK):
            key[s] *= factors[s]
    decay(xs, since)


@jit
def decay(x, factors):
    """Rows of all sets, each times its step's factor."""
    apart()
    for t in range(len(x)):
        row, factor = x[t], factors[t % CHUNK, 0]
        for d in range(len(row)):
            row[d] *= factor


@jit
def vector(xs, kts, products, tables, totals, rows, spare):
    """One decay per channel: by block rows, after each of which the keys before it decay by its block.

    `spare` is a block of rows to work in for each set of queries.
    """
    apart()
    es, since, _, _, rows_of = tables
    wide, ahead, sets = xs.shape[1], rows_of[1], len(xs) // CHUNK
    ahead[:] = 1
    for b in range(rows // BLOCK):
        at = b * BLOCK
        for r in range(sets * BLOCK):
            t = at + r % BLOCK
            query, so_far, to = xs[r // BLOCK * CHUNK + t], since[t], spare[r]
            for d in range(wide):
                to[d] = query[d] * so_far[d]
        for p in range(len(products) // CHUNK):
            i, j = p % sets, p // sets
            if b:  # whole tiles reach into the block on the diagonal, which comes after
                x, y, size = (i * BLOCK * wide, wide, 1), (j * wide * CHUNK, CHUNK), (BLOCK, (at + 15) // 16 * 16, wide)
                gemm(spare, x, kts, y, products, ((p * CHUNK + at) * CHUNK, CHUNK), size, FULL, False)
            near(xs, kts, es, products, (i * CHUNK, j * wide, p * CHUNK, at), i == sets - 1)
        for r in range(sets * BLOCK):
            query, so_far = xs[r // BLOCK * CHUNK + at + r % BLOCK], spare[r]
            for d in range(wide):
                query[d] = so_far[d] * ahead[d]
        for d in range(totals.shape[1]):
            ahead[d] *= totals[b, d]
        for j in range(0, len(kts), wide):
            for d in range(totals.shape[1]):
                factor, key = totals[b, d], kts[j + d]
                for s in range(at):
                    key[s] *= factor
