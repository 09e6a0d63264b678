"""The gradient of diagonal convolution kernels on the CPU: a table of powers, one matrix product, and Horner's rule.

With ``l = R q + r`` and ``g[q, r]`` the cotangent, one product gives the sums over r ``V[q] = sum_r g[q, r] conj(a^r)``
and ``W[q] = sum_r g[q, r] r conj(a^(r-1))``. With ``s = conj(a^R)`` the rest is Horner's rule over q in float64:
``dc = p``, ``da = conj(c) p'`` where ``p = sum_q V[q] s^q`` and ``p' = sum_q W[q] s^q + (ds/da) sum_q V[q] q s^(q-1)``.
"""

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.cpu.ssm_kernel_tables import ROWS, block_length, by_growth, channel_rows, grain, planar, product


def ssm_kernel_pullback(a: Array, c: Array, dk: Array, *, workers) -> tuple[Array, Array]:
    """See `linscan.ops.ssm_kernel.ssm_kernel_vjp`: the gradients of `a` and `c`, unreduced over broadcast axes."""
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    dc, da = np.zeros(a.shape, wide), np.zeros(a.shape, wide)  # p and p'
    if dk.size and a.size:
        a3, dc3, da3 = planar(a), planar(dc), planar(da)
        g = channel_rows(np.ascontiguousarray(dk, accum_dtype(dk.dtype)))
        tables, loops = by_growth(a3, g.shape[1], g.dtype)
        if len(tables):
            _by_tables(a3, g, dc3, da3, tables, workers)
        if len(loops):
            parallel_for(lambda lo, hi: _loop(a3, g, dc3, da3, loops[lo:hi]), len(loops), workers=workers)
        da *= np.conj(c)
    return da.astype(a.dtype, copy=False), dc.astype(a.dtype, copy=False)


def _by_tables(a, g, dc, da, channels, workers):
    states, (length, wide) = a.shape[1], g.shape[1:]
    block = block_length(length, 4 * states)
    blocks = -(-length // block)
    height = -(-blocks * wide // ROWS) * ROWS

    def body(lo, hi):
        rows, table = np.zeros((height, block), g.dtype), np.empty((block, 4 * states), g.dtype)
        found, last, x = np.empty((height, 4 * states), g.dtype), np.empty((4, states)), np.empty((6, states))
        _gradients(a, g, dc, da, channels[lo:hi], rows, table, found, last, x, blocks)

    parallel_for(body, len(channels), grain=grain(4 * length * wide * states), workers=workers)


@jit
def _gradients(a, g, dc, da, channels, rows, table, found, last, x, blocks):
    mode = flush_subnormals()
    block = len(table)
    for h in channels:
        for q in range(blocks):  # all real parts of g, then all imaginary parts
            piece = g[h, q * block : (q + 1) * block]
            for part in range(g.shape[2]):
                to = rows[part * blocks + q]
                for r in range(len(piece)):
                    to[r] = piece[r, part]
        _fill(a[h], table, last)
        for q in range(0, len(rows), ROWS):
            product(rows, q, table, found[q : q + ROWS])
        _horner(last, found, found[(g.shape[2] - 1) * blocks :], blocks, g.shape[2] - 1, x, dc[h], da[h])
    restore_subnormals(mode)


@jit
def _fill(a, table, last):
    """Row r is Re and Im of a^r, then of r a^(r-1); `last` becomes s = a^R and its derivative."""
    states, pair = a.shape
    sr, si, dr, di = last[0], last[1], last[2], last[3]
    for n in range(states):
        sr[n], si[n], dr[n], di[n] = 1.0, 0.0, 0.0, 0.0
    for row in table:
        for n in range(states):
            row[n], row[states + n], row[2 * states + n], row[3 * states + n] = sr[n], si[n], dr[n], di[n]
        for n in range(states):
            ar, ai = a[n, 0], (a[n, 1] if pair == 2 else 0.0)
            dr[n], di[n] = dr[n] * ar - di[n] * ai + sr[n], dr[n] * ai + di[n] * ar + si[n]
            sr[n], si[n] = sr[n] * ar - si[n] * ai, sr[n] * ai + si[n] * ar


@jit
def _horner(last, real, imag, blocks, both, x, dc, da):
    """p and p' of all states: `real` and `imag` hold V and W of the real and (if `both`) the imaginary part of g."""
    states, pair = dc.shape
    pr, pi, er, ei, wr, wi = x[0], x[1], x[2], x[3], x[4], x[5]
    for n in range(states):
        pr[n], pi[n], er[n], ei[n], wr[n], wi[n] = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for q in range(blocks - 1, -1, -1):
        u, v = real[q], imag[q]
        for n in range(states):
            sr, si = last[0, n], -last[1, n]
            er[n], ei[n] = er[n] * sr - ei[n] * si + pr[n], er[n] * si + ei[n] * sr + pi[n]
            pr[n], pi[n] = pr[n] * sr - pi[n] * si + u[n], pr[n] * si + pi[n] * sr - u[states + n]
            wr[n], wi[n] = wr[n] * sr - wi[n] * si + u[2 * states + n], wr[n] * si + wi[n] * sr - u[3 * states + n]
            if both:
                pr[n], pi[n] = pr[n] + v[states + n], pi[n] + v[n]
                wr[n], wi[n] = wr[n] + v[3 * states + n], wi[n] + v[2 * states + n]
    for n in range(states):
        tr, ti = last[2, n], -last[3, n]
        dc[n, pair - 1], da[n, pair - 1] = pi[n], wi[n] + er[n] * ti + ei[n] * tr
        dc[n, 0], da[n, 0] = pr[n], wr[n] + er[n] * tr - ei[n] * ti


@jit
def _loop(a, g, dc, da, channels):
    """Horner's rule one sample at a time, in place: where |a| > 1 it overflows no earlier than the gradient."""
    states, pair = a.shape[1:]
    length, wide = g.shape[1:]
    for h in channels:
        for n in range(states):
            ar, ai = a[h, n, 0], (-a[h, n, 1] if pair == 2 else 0.0)
            pr, pi, dr, di = 0.0, 0.0, 0.0, 0.0
            for t in range(length - 1, -1, -1):
                gr, gi = g[h, t, 0], (g[h, t, 1] if wide == 2 else 0.0)
                dr, di = dr * ar - di * ai + pr, dr * ai + di * ar + pi
                pr, pi = pr * ar - pi * ai + gr, pr * ai + pi * ar + gi
            dc[h, n, pair - 1], da[h, n, pair - 1] = pi, di
            dc[h, n, 0], da[h, n, 0] = pr, dr
