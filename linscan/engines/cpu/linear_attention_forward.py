"""One head of linear attention, chunk after chunk.

``O = Q̃ S + A V`` and ``S = e^W[end] S + K̂ᵀ V`` with the queries Q̃ decayed since the chunk's beginning, the keys K̂ until
its end, and the lower triangle A of queries meeting keys of the chunk.
"""

import numpy as np

from linscan.engines.cpu.chunk_products import scalar, vector
from linscan.engines.cpu.chunks import BLOCK, CHUNK, edges, load, store, turn
from linscan.engines.cpu.gemm import FULL, LOWER, gemm
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
    es, since, until, _, _ = tables
    wide, tall, one = qs.shape[1], vs.shape[1], es.shape[1] == 1
    c = first
    while c < len(bad) and not bad[c]:
        lo = c * CHUNK
        rows = min(CHUNK, (len(q) - lo + 15) // 16 * 16)
        load(q, lo, qs, units[0], units[2])
        load(k, lo, ks, units[1], units[2])
        load(v, lo, vs, units[1], units[2])
        load(e, lo, es, units[1].real, units[1].real)
        turn(ks, kt)
        edges(es, since, until)
        if one:
            scalar(qs, kt, a, tables, totals[c], rows)
        else:
            vector(qs, kt, a, tables, totals[c], rows, ks)
        gemm(qs, (0, wide, 1), S, (0, tall), os, (0, tall), (rows, tall, wide), FULL, False)
        gemm(a, (0, CHUNK, 1), vs, (0, tall), os, (0, tall), (rows, tall, rows), LOWER, True)
        if not store(os, units[1], o, lo, zeros[0]):
            break
        if len(states):
            store(S, units[1], states[c], np.int64(0), zeros[0])
        for d in range(q.shape[1]):
            row, factor = S[d], totals[c, CHUNK // BLOCK, 0 if one else d]
            for j in range(tall):
                row[j] *= factor
        gemm(kt, (0, CHUNK, 1), vs, (0, tall), S, (0, tall), (wide, tall, rows), FULL, True)
        c += 1
    restore_subnormals(mode)
    return c
