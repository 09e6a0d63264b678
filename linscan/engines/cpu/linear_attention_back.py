"""The pullback of one head of linear attention, chunk after chunk from the last one to the first.

With dA the lower triangle of dO Vᵀ and dS' the gradient of the state after the chunk, in the notation of `forward`:
``dV = Aᵀ dO + K̂ dS'``, ``dQ = (dA's part) + e^W (dO Sᵀ)``, ``dK = (dA's part) + e^(W[end]-W) (V dS'ᵀ)`` and
``dS = e^W[end] dS' + Q̃ᵀ dO``. g[t] decays whatever was written before t and is read from t on. Of pairs inside a chunk
that is what ``q dq - k dk`` sums to from t on, without the diagonal, where nothing decays; of what came in with S, the
sum of ``q dq`` from t on; of what leaves with S', that of ``k dk`` before t; and what passes through gives ``S dS'``.
"""

import numpy as np

from linscan.engines.cpu.chunk_products import decay, scalar, vector
from linscan.engines.cpu.chunk_products_back import channels_back, scalar_back
from linscan.engines.cpu.chunk_vectors import dot
from linscan.engines.cpu.chunks import BLOCK, CHUNK, edges, load, store, turn, widen
from linscan.engines.cpu.gemm import FULL, LOWER_OUT, UPPER, apart, gemm
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals


@jit
def backward(inputs, decays, states, dS, grads, units, work, tables, last):
    """Chunks from `last` down; returns the first one that has to run step by step, or -1.

    q, k, v and the states are conjugated already. `dS` (padded) holds the gradient of the state.
    """
    mode = flush_subnormals()
    q, k, v, do = inputs
    e, totals, bad = decays
    qs, raw, ks, dqs, dks, far, ends, kt, vs, os, dvs, vt, s, st, dst, a, b, zeros = work
    es, since, until, w, rows_of, late, early = tables
    wide, tall, one = qs.shape[1], vs.shape[1], es.shape[1] == 1
    c = last
    while c >= 0 and not bad[c]:
        lo = c * CHUNK
        rows = min(CHUNK, (len(q) - lo + 15) // 16 * 16)
        load(q, lo, qs, units[0], units[2])
        load(q, lo, raw, units[0], units[2])
        load(k, lo, ks, units[1], units[2])
        load(v, lo, vs, units[1], units[2])
        load(do, lo, os, units[1], units[2])
        load(e, lo, es, units[1].real, units[1].real)
        load(states[c], np.int64(0), s, units[1], units[2])
        turn(ks, kt)
        turn(vs, vt)
        turn(s, st)
        turn(dS, dst)
        edges(es, since, until)
        late[:], early[:] = 0, 0
        gemm(os, (0, tall, 1), vt, (0, CHUNK), b, (0, CHUNK), (rows, rows, tall), LOWER_OUT, False)
        if one:
            scalar(qs, kt, a, tables[:5], totals[c], rows)
            scalar_back((raw, ks, dqs, dks, a, b), w, late, rows)
            decay(ks, until)
        else:
            vector(qs, kt, a, tables[:5], totals[c], rows, far)
            channels_back((raw, ks, dqs, dks, ends, far, b), (es, since, until, late), totals[c], rows)
            widen(since, until, totals[c], rows_of[1], rows_of[2])
            ks[:] = ends
        gemm(os, (0, tall, 1), st, (0, wide), far, (0, wide), (rows, wide, tall), FULL, False)
        beyond(qs, far, since, dqs, late, rows)
        gemm(vs, (0, tall, 1), dst, (0, wide), far, (0, wide), (rows, wide, tall), FULL, False)
        beyond(ks, far, until, dks, early, rows)
        gemm(a, (0, 1, CHUNK), os, (0, tall), dvs, (0, tall), (rows, tall, rows), UPPER, False)
        gemm(kt, (0, 1, CHUNK), dS, (0, tall), dvs, (0, tall), (rows, tall, wide), FULL, True)
        fine = store(dqs, units[0], grads[0], lo, zeros[0, :wide])
        fine &= store(dks, units[1], grads[1], lo, zeros[0, :wide])
        if not store(dvs, units[1], grads[2], lo, zeros[0, :tall]) or not fine:
            break
        passed = rows_of[0]
        passed[:] = 0
        for d in range(q.shape[1]):
            i = 0 if one else d
            factor, row = totals[c, CHUNK // BLOCK, i], dS[d]
            passed[i] += factor * dot(s[d], row).real
            for j in range(tall):
                row[j] *= factor
        gemm(qs, (0, 1, wide), os, (0, tall), dS, (0, tall), (wide, tall, rows), FULL, True)
        gates(late, early, passed, es, grads[3], lo)
        c -= 1
    restore_subnormals(mode)
    return c


@jit
def beyond(x, far, factors, dx, sums, rows):
    """What passes between the chunk and the states around it: into the gradient `dx`, and into the sums for g."""
    apart()
    for t in range(rows):
        row, beyond, factor, out, total = x[t], far[t], factors[t], dx[t], sums[t]
        if len(factor) == 1:
            total[0] += dot(row, beyond).real
            for d in range(len(row)):
                out[d] += factor[0] * beyond[d]
        else:
            for d in range(len(row)):
                total[d] += (row[d] * beyond[d]).real
                out[d] += factor[d] * beyond[d]


@jit
def gates(late, early, passed, es, dg, lo):
    """Sums from t on of `late`, and before t of `early`; zero where the step forgets."""
    apart()
    count, width = min(CHUNK, len(dg) - lo), dg.shape[1]
    for t in range(CHUNK - 2, -1, -1):
        row, after = late[t], late[t + 1]
        for d in range(width):
            row[d] += after[d]
    for t in range(count):
        row, written, e, out = late[t], early[t], es[t], dg[lo + t]
        for d in range(width):
            out[d] = row[d] + passed[d] if e[d] != 0 else 0
            passed[d] += written[d]
