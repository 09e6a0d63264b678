"""The pullback of the triangle in which queries meet keys of their chunk, with one decay per channel."""

from linscan.engines.cpu.chunks import BLOCK, CHUNK
from linscan.engines.cpu.gemm import FULL, apart, gemm
from linscan.engines.cpu.jit import jit


@jit
def channels_back(buffers, tables, totals, rows):
    """One decay per channel: dA's part of dQ and dK; also leaves the keys decayed until the chunk's end in `ku`."""
    apart()
    qs, ks, dqs, dks, ku, qf, b = buffers
    es, since, until, late = tables
    wide = qs.shape[1]
    dqs[:], dks[:] = 0, 0
    for t in range(CHUNK):
        query, key, to_q, to_k, first, last = qs[t], ks[t], qf[t], ku[t], since[t], until[t]
        for d in range(wide):
            to_q[d], to_k[d] = query[d] * first[d], key[d] * last[d]
    # Between blocks. The keys before a block row are decayed until its beginning, one block after the other; its
    # gradients of them gather the same decays on the way back.
    for i in range(1, rows // BLOCK):
        at = i * BLOCK
        gemm(b, (at * CHUNK, CHUNK, 1), ku, (0, wide), dqs, (at * wide, wide), (BLOCK, wide, at), FULL, False)
        for t in range(at):
            row = ku[t]
            for d in range(totals.shape[1]):
                row[d] *= totals[i, d]
    for i in range(rows // BLOCK - 1, 0, -1):
        at = i * BLOCK
        for t in range(at):
            row = dks[t]
            for d in range(totals.shape[1]):
                row[d] *= totals[i, d]
        gemm(b, (at * CHUNK, 1, CHUNK), qf, (at * wide, wide), dks, (0, wide), (at, wide, BLOCK), FULL, True)
    for t in range(CHUNK):
        to_q, to_k, first, last = dqs[t], dks[t], since[t], until[t]
        for d in range(wide):
            to_q[d] *= first[d]
            to_k[d] *= last[d]
    _within(qs, ks, dqs, dks, es, b, qf[0], rows)
    late[:] = 0
    for t in range(rows):
        query, key, to_q, to_k, row, own = qs[t], ks[t], dqs[t], dks[t], late[t], b[t, t]
        for d in range(wide):
            row[d] = (query[d] * to_q[d] - key[d] * to_k[d]).real
            to_q[d] += own * key[d]
            to_k[d] += own * query[d]


@jit
def _within(qs, ks, dqs, dks, es, b, moved, rows):
    """Pairs of different steps of one block; `moved` is a row to work in."""
    apart()
    for s in range(rows):
        end = (s // BLOCK + 1) * BLOCK
        key, query = ks[s], qs[s]
        for d in range(len(key)):
            moved[d] = key[d]
        for t in range(s + 1, end):
            to, factor, e = dqs[t], b[t, s], es[t]
            for d in range(len(key)):
                moved[d] *= e[d]
                to[d] += factor * moved[d]
        for d in range(len(key)):
            moved[d] = query[d]
        for i in range(s % BLOCK):
            to, factor, e = dks[s - 1 - i], b[s, s - 1 - i], es[s - i]
            for d in range(len(key)):
                moved[d] *= e[d]
                to[d] += factor * moved[d]
