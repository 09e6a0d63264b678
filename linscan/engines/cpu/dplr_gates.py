"""Gradients inside a chunk under decay that are not matrix products; the counterpart of `dplr_kernels`."""

import numpy as np

from linscan.engines.cpu.dplr_kernels import BLOCK
from linscan.engines.cpu.dplr_simd import part
from linscan.engines.cpu.jit import jit


@jit
def gather_rows(dnear, dfar, since, dx):
    """dx from the gradients of the rows decayed from their block's beginning and from the chunk's."""
    first = np.empty(dx.shape[3], dx.dtype)
    for h in range(dx.shape[1]):
        for d in range(len(first)):
            first[d] = 1
        for t in range(dx.shape[2]):
            if t % BLOCK == 0 and t:
                total = since[h, t - 1]
                for d in range(len(first)):
                    first[d] *= total[d]
            for i in range(2):
                out, one, far = dx[i, h, t], dnear[i, h, t], dfar[i, h, t]
                for d in range(len(out)):
                    out[d] = one[d] + far[d] * first[d]
                decay, alone = since[h, max(0, t - 1 + i)], i == 0 and t % BLOCK == 0
                for d in range(len(out)):
                    out[d] *= 1 if alone else decay[d]


@jit
def gather_keys(until, since, dnew, dold, dy, block):
    """The adjoint of `decay_keys`: `dold` is added to, `dy` filled for this block."""
    for j in range(len(dy)):
        for h in range(dy.shape[1]):
            total = since[h, (block + 1) * BLOCK - 1]
            for t in range(block * BLOCK):
                row, out = dnew[j, h, t], dold[j, h, t]
                for d in range(len(row)):
                    out[d] += row[d] * total[d]
            for t in range(block * BLOCK, (block + 1) * BLOCK):
                row, out, decay = dnew[j, h, t], dy[j, h, t], until[h, t]
                for d in range(len(row)):
                    out[d] = row[d] * decay[d]


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
