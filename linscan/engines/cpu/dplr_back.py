"""The pullback of one head of `dplr_attention`, or of the delta rule, chunk after chunk from the last one to the first.

In the notation of the reference, with values Z of keys k (V of k and U of b, or U of k) and dS' the gradient of the
state after the chunk: ``dZ = [q, k]ᵀ dO + k^ dS'``, ``Λ = (I - [a, b])⁻ᵀ dU`` and dV is ``dV + [a, k]ᵀ Λ``, or Λ alone.
The rest is that of linear attention, twice: of queries q and cotangents dO, and of rows a and Λ, both moved up by one.
"""

import numpy as np

from linscan.engines.cpu.chunk_products import decay
from linscan.engines.cpu.chunk_products_back import channels_back, scalar_back
from linscan.engines.cpu.chunk_vectors import dot, substitute_transposed
from linscan.engines.cpu.chunks import BLOCK, CHUNK, load, store, turn, widen
from linscan.engines.cpu.dplr_forward import PAIR, ROOM, written
from linscan.engines.cpu.gemm import FULL, LOWER_OUT, UPPER, apart, gemm
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.linear_attention_back import beyond, gates


@jit
def backward(inputs, decays, states, dS, grads, units, work, tables, more, last):
    """Chunks from `last` down; returns the first one that has to run step by step, or -1.

    `dS` (padded) holds the gradient of the state.
    """
    mode = flush_subnormals()
    first, q, k, b, v, do = inputs
    totals, bad = decays[1:]
    xf, ys, _, a, zs, _, _ = work
    es, since, until, w, rows_of = tables
    xs, dxs, far, dys, ends, flows, dzs, da, s, st, dst, _, zeros, late, early = more
    wide, tall, one = xs.shape[1], zs.shape[1], es.shape[1] == 1
    c = last
    while c >= 0 and not bad[c]:
        lo = c * CHUNK
        load(states[c], np.int64(0), s, units[1], units[2])
        load(do, lo, flows[CHUNK:], units[1], units[2])
        turn(s, st)
        turn(dS, dst)
        rows = written((first, q, k, b, v), decays, c, s, units, work, tables)
        load(first, lo + 1, xs[:CHUNK], units[1], units[2])
        load(q, lo, xs[CHUNK:], units[0], units[2])
        xs[rows - 1] = 0
        for j in range(0, len(ys), CHUNK):
            load(b if j else k, lo, ys[j : j + CHUNK], units[1], units[2])
        _values(work, more, dS, rows)
        late[:], early[:] = 0, 0
        if one:
            scalar_back((xs, ys, dxs, dys, a, da), w, late, rows)
            decay(ys, until)
        else:
            channels_back((xs, ys, dxs, dys, ends, far, da), (es, since, until, late), totals[c], rows)
            widen(since, until, totals[c], rows_of[1], rows_of[2])
            ys[:] = ends
        for i in range(2):
            flow, x = (i * CHUNK * tall, tall, 1), slice(i * CHUNK, (i + 1) * CHUNK)
            gemm(flows, flow, st, (0, wide), far, (0, wide), (rows, wide, tall), FULL, False)
            beyond(xf[x], far, since, dxs[x], late, rows - 1 + i)
            if i == 0:
                row, alone = dxs[rows - 1], far[rows - 1]
                for d in range(wide):
                    row[d] += alone[d]
        for j in range(len(zs) // ROOM):
            z, y = (j * ROOM * tall, tall, 1), slice(j * CHUNK, (j + 1) * CHUNK)
            gemm(zs, z, dst, (0, wide), far, (0, wide), (rows, wide, tall), FULL, False)
            beyond(ys[y], far, until, dys[y], early, rows)
        if not _stored(dxs, dys, dzs, grads, units, lo, rows, zeros[0]):
            break
        passed = rows_of[0]
        passed[:] = 0
        for d in range(states.shape[1]):
            i = 0 if one else d
            factor, row = totals[c, CHUNK // BLOCK, i], dS[d]
            passed[i] += factor * dot(s[d], row).real
            for j in range(tall):
                row[j] *= factor
        for i in range(2):
            left, right = (i * CHUNK * wide, 1, wide), (i * CHUNK * tall, tall)
            gemm(xf, left, flows, right, dS, (0, tall), (wide, tall, rows), FULL, True)
        gates(late, early, passed, es, grads[5], lo)
        c -= 1
    restore_subnormals(mode)
    return c


@jit
def _values(work, more, dS, rows):
    """Gradients of what is written along the keys, of V the first in `dzs`; then those of products, and all flows."""
    apart()
    _, _, kts, a, zs, _, _ = work
    _, _, _, _, _, flows, dzs, da, _, _, _, zt, _, _, _ = more
    keys, tall = len(zs) // ROOM, zs.shape[1]
    wide = len(kts) // keys
    for j in range(keys):
        left, to = ((2 * j + 1) * PAIR, 1, CHUNK), (j * CHUNK * tall, tall)
        gemm(a, left, flows, (CHUNK * tall, tall), dzs, to, (rows, tall, rows), UPPER, False)
        gemm(kts, (j * wide * CHUNK, 1, CHUNK), dS, (0, tall), dzs, to, (rows, tall, wide), FULL, True)
    start, lower = (keys - 1) * CHUNK, 2 * (keys - 1) * CHUNK
    for t in range(rows - BLOCK, -1, -BLOCK):
        end = t + BLOCK
        if end < rows:
            left, size = ((lower + end - 1) * CHUNK + t, 1, CHUNK), (BLOCK, tall, rows - end)
            gemm(a, left, dzs, ((start + end) * tall, tall), dzs, ((start + t) * tall, tall), size, FULL, True)
        substitute_transposed(a, dzs, (lower, start), t)
    for t in range(rows):
        row, to = dzs[start + (t + 1 if t < rows - 1 else 0)], flows[t]
        for d in range(tall):
            to[d] = row[d]
    if keys == 2:
        gemm(a, (0, 1, CHUNK), flows, (0, tall), dzs, (0, tall), (rows, tall, rows), UPPER, True)
    for j in range(keys):
        turn(zs[j * ROOM : j * ROOM + CHUNK], zt)
        for i in range(2):
            flow, to = (i * CHUNK * tall, tall, 1), ((2 * j + i) * PAIR, CHUNK)
            gemm(flows, flow, zt, (0, CHUNK), da, to, (rows, rows, tall), LOWER_OUT, False)
        da[2 * j * CHUNK + rows - 1] = 0


@jit
def _stored(dxs, dys, dzs, grads, units, lo, rows, zeros):
    """All gradients but that of g into their places; whether all are finite."""
    apart()
    to_a, to_q, to_k, to_b, to_v, _ = grads
    wide, tall = dxs.shape[1], dzs.shape[1]
    fine = store(dxs[: rows - 1], units[1], to_a, lo + 1, zeros[:wide])
    fine &= store(dxs[rows - 1 : rows], units[1], to_a, lo, zeros[:wide])
    fine &= store(dxs[CHUNK:], units[0], to_q, lo, zeros[:wide])
    fine &= store(dys[:CHUNK], units[1], to_k, lo, zeros[:wide])
    if len(dys) > CHUNK:
        fine &= store(dys[CHUNK:], units[1], to_b, lo, zeros[:wide])
    return fine & store(dzs[:CHUNK], units[1], to_v, lo, zeros[:tall])
