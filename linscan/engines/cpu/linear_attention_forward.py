"""One head of linear attention, chunk after chunk.

``O = Q̃ S + A V`` and ``S = e^W[end] S + K̂ᵀ V`` with the queries Q̃ decayed since the chunk's beginning, the keys K̂ until
its end, and the lower triangle A of queries meeting keys of the chunk.
"""

from linscan.engines.cpu.chunk_vectors import near
from linscan.engines.cpu.chunks import BLOCK, CHUNK, edges, load, store, triangle, turn, widen
from linscan.engines.cpu.gemm import FULL, LOWER, LOWER_OUT, apart, gemm
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals


@jit
def forward(inputs, decays, S, o, states, units, work, tables, first):
    """Chunks from `first` on; returns the first one that has to run step by step, or their number.

    `S` (padded) holds the state and is left as the one before the chunk returned. `units` are the output's scale and
    one, `work` and `tables` buffers, zero and one.
    """
    mode = flush_subnormals()
    q, k, v = inputs
    e, totals, bad = decays
    qs, ks, vs, os, kt, a, zeros = work
    es, since, until, w, rows_of = tables
    wide, tall, scalar = qs.shape[1], vs.shape[1], es.shape[1] == 1
    c = first
    while c < len(bad) and not bad[c]:
        lo = c * CHUNK
        rows = min(CHUNK, (len(q) - lo + 15) // 16 * 16)
        load(q, lo, qs, units[0], 0)
        load(k, lo, ks, units[1], 0)
        load(v, lo, vs, units[1], 0)
        load(e, lo, es, units[1].real, 1)
        turn(ks, kt)
        edges(es, since, until)
        if scalar:
            gemm(qs, (0, wide, 1), kt, (0, CHUNK), a, (0, CHUNK), (rows, rows, wide), LOWER_OUT, False)
            triangle(es, since, until, totals[c], w, rows_of[0])
            widen(since, until, totals[c], rows_of[1], rows_of[2])
            _weigh(qs, kt, a, w, since, until)
        else:
            vector(qs, kt, es, since, totals[c], a, rows, rows_of[1], ks)
        gemm(qs, (0, wide, 1), S, (0, tall), os, (0, tall), (rows, tall, wide), FULL, False)
        gemm(a, (0, CHUNK, 1), vs, (0, tall), os, (0, tall), (rows, tall, rows), LOWER, True)
        if not store(os, units[1], o, lo, zeros[0]):
            break
        if len(states):
            store(S, units[1], states[c], 0, zeros[0])
        for d in range(q.shape[1]):
            row, factor = S[d], totals[c, CHUNK // BLOCK, 0 if scalar else d]
            for j in range(tall):
                row[j] *= factor
        gemm(kt, (0, CHUNK, 1), vs, (0, tall), S, (0, tall), (wide, tall, rows), FULL, True)
        c += 1
    restore_subnormals(mode)
    return c


@jit
def _weigh(qs, kt, a, w, since, until):
    """One decay per step: into A, into the queries since the chunk's beginning, into the keys until its end."""
    apart()
    for t in range(CHUNK):
        row, weight, query, factor = a[t], w[t], qs[t], since[t, 0]
        for s in range((t // BLOCK + 1) * BLOCK):  # beyond, nothing is wanted
            row[s] *= weight[s]
        for d in range(len(query)):
            query[d] *= factor
    for d in range(len(kt)):
        key = kt[d]
        for s in range(CHUNK):
            key[s] *= until[s, 0]


@jit
def vector(qs, kt, es, since, totals, a, rows, ahead, spare):
    """One decay per channel: A by block rows, after each of which the keys before it decay by its block.

    `since` is of blocks. Queries are left as decayed since the chunk's beginning, keys until its end; `ahead` is a row
    to work in, `spare` a few.
    """
    apart()
    wide = qs.shape[1]
    ahead[:] = 1
    for b in range(rows // BLOCK):
        at = b * BLOCK
        for i in range(BLOCK):
            query, so_far, to = qs[at + i], since[at + i], spare[i]
            for d in range(wide):
                to[d] = query[d] * so_far[d]
        if b:  # whole tiles reach into the block on the diagonal, which comes after
            size = BLOCK, (at + 15) // 16 * 16, wide
            gemm(spare, (0, wide, 1), kt, (0, CHUNK), a, (at * CHUNK, CHUNK), size, FULL, False)
        near(qs, kt, es, a, at)
        for i in range(BLOCK):
            query, so_far = qs[at + i], spare[i]
            for d in range(wide):
                query[d] = so_far[d] * ahead[d]
        for d in range(totals.shape[1]):
            factor, key = totals[b, d], kt[d]
            ahead[d] *= factor
            for s in range(at):
                key[s] *= factor
