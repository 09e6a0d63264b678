"""The pullback of `chunk_products`: triangles' gradients into those of queries and keys, and into the sums for g.

`b` holds the gradients of the triangles, of blocks on the diagonal what is used is lower too. `ys` are the keys, not
turned. `late` gathers ``q dq - k dk`` of pairs of different steps: the gradient of g[t] is what that sums to from t on.
"""

from linscan.engines.cpu.chunk_vectors import dot
from linscan.engines.cpu.chunks import BLOCK, CHUNK
from linscan.engines.cpu.gemm import FULL, LOWER, UPPER, apart, gemm
from linscan.engines.cpu.jit import jit


@jit
def scalar_back(arrays, w, late, rows):
    """One decay per step; `a` are the products, decayed."""
    apart()
    xs, ys, dxs, dys, a, b = arrays
    wide, sets = xs.shape[1], len(xs) // CHUNK
    _pairs(a, b, w, late, rows)
    for p in range(len(b) // CHUNK):
        at, size = p * CHUNK * CHUNK, (rows, wide, rows)
        x, y = (p % sets * CHUNK * wide, wide), (p // sets * CHUNK * wide, wide)
        gemm(b, (at, CHUNK, 1), ys, y, dxs, x, size, LOWER, p >= sets)
        gemm(b, (at, 1, CHUNK), xs, x, dys, y, size, UPPER, p % sets > 0)


@jit
def _pairs(a, b, w, late, rows):
    """Decays into dA, and what the pairs off the diagonal give to g."""
    apart()
    for p in range(len(a)):
        t = p % CHUNK
        if t < rows:
            end = (t // BLOCK + 1) * BLOCK  # beyond, nothing is wanted
            x, y, weight = a[p, :end], b[p, :end], w[t]
            kept, x[t] = x[t], 0
            late[t, 0] += dot(x, y).real
            for s in range(t):
                late[s, 0] -= (x[s] * y[s]).real
            x[t] = kept
            for s in range(end):
                y[s] *= weight[s]


@jit
def channels_back(arrays, tables, totals, rows):
    """One decay per channel; the keys decayed until the chunk's end are left in `ku`. `qf` is like `xs`, to work in."""
    apart()
    xs, ys, dxs, dys, ku, qf, b = arrays
    es, since, until, late = tables
    wide, pair, sets = xs.shape[1], CHUNK * CHUNK, len(xs) // CHUNK
    dxs[:], dys[:] = 0, 0
    _times(xs, since, qf)
    _times(ys, until, ku)
    # Between blocks. The keys before a block row are decayed until its beginning, one block after the other; its
    # gradients of them gather the same decays on the way back.
    for c in range(1, rows // BLOCK):
        at = c * BLOCK
        for p in range(len(b) // CHUNK):
            to, y = ((p % sets * CHUNK + at) * wide, wide), (p // sets * CHUNK * wide, wide)
            gemm(b, (p * pair + at * CHUNK, CHUNK, 1), ku, y, dxs, to, (BLOCK, wide, at), FULL, True)
        _by_block(ku, totals[c], at)
    for c in range(rows // BLOCK - 1, 0, -1):
        at = c * BLOCK
        _by_block(dys, totals[c], at)
        for p in range(len(b) // CHUNK):
            x, to = ((p % sets * CHUNK + at) * wide, wide), (p // sets * CHUNK * wide, wide)
            gemm(b, (p * pair + at * CHUNK, 1, CHUNK), qf, x, dys, to, (at, wide, BLOCK), FULL, True)
    _times(dxs, since, dxs)
    _times(dys, until, dys)
    for p in range(len(b) // CHUNK):
        _within(xs, ys, dxs, dys, es, b, qf[0], (p % sets * CHUNK, p // sets * CHUNK, p * CHUNK, rows))
    _dots(xs, dxs, late, 1)
    _dots(ys, dys, late, -1)
    for p in range(len(b)):
        t = p % CHUNK
        if t < rows:
            x, y, own = p // CHUNK % sets * CHUNK + t, p // CHUNK // sets * CHUNK + t, b[p, t]
            query, key, to_q, to_k = xs[x], ys[y], dxs[x], dys[y]
            for d in range(wide):
                to_q[d] += own * key[d]
                to_k[d] += own * query[d]


@jit
def _times(x, factors, out):
    apart()
    for t in range(len(x)):
        row, factor, to = x[t], factors[t % CHUNK], out[t]
        for d in range(len(row)):
            to[d] = row[d] * factor[d]


@jit
def _by_block(x, total, end):
    apart()
    for t in range(len(x)):
        if t % CHUNK < end:
            row = x[t]
            for d in range(len(total)):
                row[d] *= total[d]


@jit
def _dots(x, dx, sums, sign):
    apart()
    for t in range(len(x)):
        row, grad, to = x[t], dx[t], sums[t % CHUNK]
        for d in range(len(to)):
            to[d] += sign * (row[d] * grad[d]).real


@jit
def _within(qs, ks, dqs, dks, es, b, moved, places):
    """Pairs of different steps of one block; `moved` is a row to work in, `places` where the sets and b begin."""
    apart()
    x, y, p, rows = places
    for s in range(rows):
        end = (s // BLOCK + 1) * BLOCK
        key, query = ks[y + s], qs[x + s]
        for d in range(len(key)):
            moved[d] = key[d]
        for t in range(s + 1, end):
            to, factor, e = dqs[x + t], b[p + t, s], es[t]
            for d in range(len(key)):
                moved[d] *= e[d]
                to[d] += factor * moved[d]
        for d in range(len(key)):
            moved[d] = query[d]
        for i in range(s % BLOCK):
            to, factor, e = dks[y + s - 1 - i], b[p + s, s - 1 - i], es[s - i]
            for d in range(len(key)):
                moved[d] *= e[d]
                to[d] += factor * moved[d]
