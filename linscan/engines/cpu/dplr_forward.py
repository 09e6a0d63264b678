"""One head of `dplr_attention`, or of the delta rule, chunk after chunk.

The mathematics is in `linscan.engines.reference.dplr_attention`. Rows a[t] meet the decays of step t - 1, since they
act before their own: moved up by one they are a second set of queries. a[0] meets the state alone, undecayed, and
takes the place the last one left: its result is found one row after the last.
"""

import numpy as np

from linscan.engines.cpu.chunk_products import scalar, vector
from linscan.engines.cpu.chunk_vectors import substitute
from linscan.engines.cpu.chunks import BLOCK, CHUNK, edges, load, store, turn
from linscan.engines.cpu.gemm import FULL, LOWER, apart, gemm
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals

PAIR, ROOM = CHUNK * CHUNK, CHUNK + 1  # a product's numbers; rows of values, with one for the result that is too late


@jit
def forward(inputs, decays, S, o, states, units, work, tables, first):
    """Chunks from `first` on; returns the first one that has to run step by step, or their number.

    `S` (padded) holds the state and is left as the one before the chunk returned. `units` are the output's scale and
    one, `work` and `tables` buffers, zero and one.
    """
    mode = flush_subnormals()
    totals, bad = decays[1:]
    xs, _, kts, a, zs, os, zeros = work
    wide, tall, one = xs.shape[1], os.shape[1], tables[0].shape[1] == 1
    c = first
    while c < len(bad) and not bad[c]:
        rows = written(inputs, decays, c, S, units, work, tables)
        gemm(xs, (CHUNK * wide, wide, 1), S, (0, tall), os, (0, tall), (rows, tall, wide), FULL, False)
        for j in range(len(zs) // ROOM):
            left, z = ((2 * j + 1) * PAIR, CHUNK, 1), (j * ROOM * tall, tall)
            gemm(a, left, zs, z, os, (0, tall), (rows, tall, rows), LOWER, True)
        if not store(os, units[1], o, c * CHUNK, zeros[0]):
            break
        if len(states):
            store(S, units[1], states[c], np.int64(0), zeros[0])
        for d in range(states.shape[1]):
            row, factor = S[d], totals[c, CHUNK // BLOCK, 0 if one else d]
            for j in range(tall):
                row[j] *= factor
        for j in range(len(zs) // ROOM):
            left, z = (j * wide * CHUNK, CHUNK, 1), (j * ROOM * tall, tall)
            gemm(kts, left, zs, z, S, (0, tall), (wide, tall, rows), FULL, True)
        c += 1
    restore_subnormals(mode)
    return c


@jit
def written(inputs, decays, c, S, units, work, tables):
    """What chunk `c` writes along each set of keys, `zs`: V and U, or U alone; returns its steps in whole tiles.

    Also left: queries decayed since its beginning and keys (`kts`, turned) until its end, and their products `a`.
    """
    apart()
    first, q, k, b, v = inputs
    e, totals, _ = decays
    xs, ys, kts, a, zs, _, _ = work
    es, since, until, _, _ = tables
    lo, keys, wide, tall = c * CHUNK, len(zs) // ROOM, xs.shape[1], zs.shape[1]
    rows = min(CHUNK, (len(q) - lo + 15) // 16 * 16)
    load(first, lo + 1, xs[:CHUNK], units[1], units[2])
    load(q, lo, xs[CHUNK:], units[0], units[2])
    load(v, lo, zs[:CHUNK], units[1], units[2])
    load(e, lo, es, units[1], units[1])
    for j in range(keys):
        key = ys[j * CHUNK : (j + 1) * CHUNK]
        load(b if j else k, lo, key, units[1], units[2])
        turn(key, kts[j * wide : (j + 1) * wide])
    edges(es, since, until)
    place, row = xs[rows - 1], first[lo]
    for d in range(wide):
        place[d] = 0
    if es.shape[1] == 1:
        scalar(xs, kts, a, tables, totals[c], rows)
    else:
        vector(xs, kts, a, tables, totals[c], rows, ys)
    for d in range(len(row)):
        place[d] = row[d]
    for t in range(rows if keys == 1 else CHUNK + 1, len(zs)):
        u = zs[t]
        for d in range(tall):
            u[d] = 0
    at = (keys - 1) * ROOM
    gemm(xs, (0, wide, 1), S, (0, tall), zs, ((at + 1) * tall, tall), (rows, tall, wide), FULL, True)
    u, late = zs[at], zs[at + rows]
    for d in range(tall):
        u[d] += late[d]
    if keys == 2:
        gemm(a, (0, CHUNK, 1), zs, (0, tall), zs, ((at + 1) * tall, tall), (rows, tall, rows), LOWER, True)
    lower = 2 * (keys - 1) * CHUNK
    for t in range(0, rows, BLOCK):
        if t:
            left, to = ((lower + t - 1) * CHUNK, CHUNK, 1), ((at + t) * tall, tall)
            gemm(a, left, zs, (at * tall, tall), zs, to, (BLOCK, tall, t), FULL, True)
        substitute(a, zs, (lower, at), t)
    return rows
