"""The pullback of one head of linear attention, chunk after chunk from the last one to the first.

With dA the lower triangle of dO Vᵀ and dS' the gradient of the state after the chunk, in the notation of `forward`:
``dV = Aᵀ dO + K̂ dS'``, ``dQ = (dA's part) + e^W (dO Sᵀ)``, ``dK = (dA's part) + e^(W[end]-W) (V dS'ᵀ)`` and
``dS = e^W[end] dS' + Q̃ᵀ dO``. g[t] decays whatever was written before t and is read from t on. Of pairs inside a chunk
that is what ``q dq - k dk`` sums to from t on, without the diagonal, where nothing decays; of what came in with S, the
sum of ``q dq`` from t on; of what leaves with S', that of ``k dk`` before t; and what passes through gives ``S dS'``.
"""

from linscan.engines.cpu.chunk_vectors import dot
from linscan.engines.cpu.chunks import BLOCK, CHUNK, edges, load, store, triangle, turn, widen
from linscan.engines.cpu.gemm import FULL, LOWER, LOWER_OUT, UPPER, apart, gemm
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.linear_attention_channels import channels_back
from linscan.engines.cpu.linear_attention_forward import vector


@jit
def backward(inputs, decays, states, dS, grads, units, work, tables, last):
    """Chunks from `last` down; returns the first one that has to run step by step, or -1.

    q, k, v and the states are conjugated already. `dS` (padded) holds the gradient of the state.
    """
    mode = flush_subnormals()
    q, k, v, do = inputs
    e, totals, bad = decays
    qs, ks, dqs, dks, far, spare, vs, os, dvs, kt, vt, s, st, dst, a, b, zeros = work
    es, since, until, late, early, w, rows_of = tables
    wide, tall, scalar = qs.shape[1], vs.shape[1], es.shape[1] == 1
    c = last
    while c >= 0 and not bad[c]:
        lo = c * CHUNK
        rows = min(CHUNK, (len(q) - lo + 15) // 16 * 16)
        load(q, lo, qs, units[0], 0)
        load(k, lo, ks, units[1], 0)
        load(v, lo, vs, units[1], 0)
        load(do, lo, os, units[1], 0)
        load(e, lo, es, units[1].real, 1)
        load(states[c], 0, s, units[1], 0)
        turn(ks, kt)
        turn(vs, vt)
        turn(s, st)
        turn(dS, dst)
        edges(es, since, until)
        gemm(os, (0, tall, 1), vt, (0, CHUNK), b, (0, CHUNK), (rows, rows, tall), LOWER_OUT, False)
        if scalar:
            gemm(qs, (0, wide, 1), kt, (0, CHUNK), a, (0, CHUNK), (rows, rows, wide), LOWER_OUT, False)
            triangle(es, since, until, totals[c], w, rows_of[0])
            widen(since, until, totals[c], rows_of[1], rows_of[2])
            _pairs(a, b, w, late, rows)
            gemm(b, (0, CHUNK, 1), ks, (0, wide), dqs, (0, wide), (rows, wide, rows), LOWER, False)
            gemm(b, (0, 1, CHUNK), qs, (0, wide), dks, (0, wide), (rows, wide, rows), UPPER, False)
            _decay(qs, since)
            _decay(ks, until)
        else:
            channels_back((qs, ks, dqs, dks, far, spare, b), (es, since, until, late), totals[c], rows)
            vector(qs, kt, es, since, totals[c], a, rows, rows_of[1], spare)
            for t in range(rows):
                row, later = ks[t], far[t]
                for d in range(wide):
                    row[d] = later[d]
            widen(since, until, totals[c], rows_of[1], rows_of[2])
        early[:] = 0
        gemm(os, (0, tall, 1), st, (0, wide), far, (0, wide), (rows, wide, tall), FULL, False)
        _beyond(qs, far, since, dqs, late, rows)
        gemm(vs, (0, tall, 1), dst, (0, wide), far, (0, wide), (rows, wide, tall), FULL, False)
        _beyond(ks, far, until, dks, early, rows)
        gemm(a, (0, 1, CHUNK), os, (0, tall), dvs, (0, tall), (rows, tall, rows), UPPER, False)
        gemm(ks, (0, wide, 1), dS, (0, tall), dvs, (0, tall), (rows, tall, wide), FULL, True)
        fine = store(dqs, units[0], grads[0], lo, zeros[0, :wide])
        fine &= store(dks, units[1], grads[1], lo, zeros[0, :wide]) & store(
            dvs, units[1], grads[2], lo, zeros[0, :tall]
        )
        if not fine:
            break
        passed = rows_of[0]
        passed[:] = 0
        for d in range(q.shape[1]):
            i = 0 if scalar else d
            factor, row = totals[c, CHUNK // BLOCK, i], dS[d]
            passed[i] += factor * dot(s[d], row).real
            for j in range(tall):
                row[j] *= factor
        gemm(qs, (0, 1, wide), os, (0, tall), dS, (0, tall), (wide, tall, rows), FULL, True)
        _gates(late, early, passed, es, grads[3], lo)
        c -= 1
    restore_subnormals(mode)
    return c


@jit
def _pairs(a, b, w, late, rows):
    """One decay per step: decays into A and dA, and what the pairs off the diagonal give to g."""
    apart()
    late[:] = 0
    for t in range(rows):
        end = (t // BLOCK + 1) * BLOCK  # beyond, nothing is wanted
        x, y, weight = a[t, :end], b[t, :end], w[t]
        for s in range(end):
            x[s] *= weight[s]
        kept, x[t] = x[t], 0
        late[t, 0] += dot(x, y).real
        for s in range(t):
            late[s, 0] -= (x[s] * y[s]).real
        x[t] = kept
        for s in range(end):
            y[s] *= weight[s]


@jit
def _decay(x, factors):
    apart()
    for t in range(CHUNK):
        row, factor = x[t], factors[t, 0]
        for d in range(len(row)):
            row[d] *= factor


@jit
def _beyond(x, far, factors, dx, sums, rows):
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
def _gates(late, early, passed, es, dg, lo):
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
