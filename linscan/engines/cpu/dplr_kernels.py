"""Inside a chunk of the delta rule and its generalisation: what is not a matrix product, as compiled loops.

Arrays are (heads, steps, channels), contiguous, steps in blocks of BLOCK; `x` holds the rows a and q, `y` the keys that
are written along. Loops run along channels or values, which are contiguous.
"""

from linscan.engines.cpu.dplr_simd import meet, part
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals

BLOCK = 16


@jit
def flush(mode):
    """Switch flush-to-zero on in this thread and return the mode before; with that as `mode`, not -1, put it back."""
    now = flush_subnormals()
    if mode >= 0:
        restore_subnormals(mode)
    return now


@jit
def sums(g, since, until):
    """Sums of g within each block: since its beginning, this step included, and until its end, this step left out."""
    for h in range(len(g)):
        for t in range(g.shape[1]):
            row, now, before = g[h, t], since[h, t], since[h, max(t - 1, 0)]
            kept = 0 if t % BLOCK == 0 else 1
            for d in range(len(row)):
                now[d] = row[d] + before[d] if kept else row[d]
        for t in range(g.shape[1] - 1, -1, -1):
            now, kept = until[h, t], 0 if t % BLOCK == BLOCK - 1 else 1
            row, after = g[h, t + kept], until[h, t + kept]
            for d in range(len(row)):
                now[d] = row[d] + after[d] if kept else 0


@jit
def diagonal(x, y, e, products, key, ones):
    """The blocks on the diagonal of all products of rows and keys under decay, by decaying each key step by step.

    `key` is a buffer for one, `ones` no decay; channels come in whole LANES, zeros at the end. A row a acts before its
    step's decay, q after it, and a key decays from the step after its own on.
    """
    for j in range(len(y)):
        for h in range(y.shape[1]):
            for s in range(y.shape[2]):
                row = y[j, h, s]
                for d in range(len(key)):
                    key[d] = row[d]
                products[1, j, h, s, s] = meet(x[0, h, s], x[1, h, s], ones, key)[1]
                for t in range(s + 1, (s // BLOCK + 1) * BLOCK):
                    products[0, j, h, t, s], products[1, j, h, t, s] = meet(x[0, h, t], x[1, h, t], e[h, t], key)


@jit
def solve(lower, u):
    """u := (I - lower)^-1 u by substitution; only what is below the diagonal is read."""
    for h in range(len(u)):
        for t in range(u.shape[1]):
            out, row = u[h, t], lower[h, t]
            whole = t // 4 * 4
            for s in range(0, whole, 4):
                u0, u1, u2, u3 = u[h, s], u[h, s + 1], u[h, s + 2], u[h, s + 3]
                m0, m1, m2, m3 = row[s], row[s + 1], row[s + 2], row[s + 3]
                for d in range(len(out)):
                    out[d] += m0 * u0[d] + m1 * u1[d] + m2 * u2[d] + m3 * u3[d]
            for s in range(whole, t):
                u0, m0 = u[h, s], row[s]
                for d in range(len(out)):
                    out[d] += m0 * u0[d]


@jit
def solve_transposed(lower, u):
    """u := (I - lowerᵀ)^-1 u by substitution from the end."""
    for h in range(len(u)):
        size = u.shape[1]
        for t in range(size - 1, -1, -1):
            out, column = u[h, t], lower[h, :, t]
            whole = size - (size - 1 - t) // 4 * 4
            for s in range(t + 1, whole):
                u0, m0 = u[h, s], column[s]
                for d in range(len(out)):
                    out[d] += m0 * u0[d]
            for s in range(whole, size, 4):
                u0, u1, u2, u3 = u[h, s], u[h, s + 1], u[h, s + 2], u[h, s + 3]
                m0, m1, m2, m3 = column[s], column[s + 1], column[s + 2], column[s + 3]
                for d in range(len(out)):
                    out[d] += m0 * u0[d] + m1 * u1[d] + m2 * u2[d] + m3 * u3[d]


@jit
def diagonal_pullback(x, y, e, dproducts, dx, dy, f):
    """Add what the blocks on the diagonal give to dx and dy.

    With F the decay from s to t: dq[t] += dP F y[s] and dy[s] += dP F q[t]; the same for a and s < t, with the decay
    before step t. `f` is a buffer; channels come in whole LANES.
    """
    for j in range(len(y)):
        for h in range(y.shape[1]):
            for s in range(y.shape[2]):
                key, dkey = y[j, h, s], dy[j, h, s]
                q, dq, p = x[1, h, s], dx[1, h, s], dproducts[1, j, h, s, s]
                for d in range(len(f)):
                    dq[d] += p * key[d]
                for d in range(len(f)):
                    dkey[d] += p * q[d]
                    f[d] = 1
                for t in range(s + 1, (s // BLOCK + 1) * BLOCK):
                    rows = x[0, h, t], x[1, h, t], e[h, t], dx[0, h, t], dx[1, h, t]
                    part(dproducts[0, j, h, t, s], dproducts[1, j, h, t, s], rows, key, dkey, f)


@jit
def gates(x, y, dx, dy, e, last, dg):
    """dg[t] = dg[t+1] + q dq - y dy (at t) + a da (at t+1), from `last` after the chunk; 0 where nothing is kept."""
    for h in range(len(dg)):
        flow = last[h]
        for t in range(dg.shape[1] - 1, -1, -1):
            q, dq, out, decay = x[1, h, t], dx[1, h, t], dg[h, t], e[h, t]
            for d in range(len(flow)):
                flow[d] += q[d] * dq[d]
            for j in range(len(y)):
                key, dkey = y[j, h, t], dy[j, h, t]
                for d in range(len(flow)):
                    flow[d] -= key[d] * dkey[d]
            a, da = x[0, h, t], dx[0, h, t]
            for d in range(len(flow)):
                out[d] = flow[d] if decay[d] != 0 else 0
                flow[d] = out[d] + a[d] * da[d]
