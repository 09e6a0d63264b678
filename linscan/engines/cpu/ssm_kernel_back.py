"""The gradient of diagonal convolution kernels on the CPU: a table of powers, one matrix product, and Horner's rule.

With ``l = R q + r`` and ``g[q, r]`` the cotangent, one product gives the sums over r ``V[q] = sum_r g[q, r] conj(a^r)``
and ``W[q] = sum_r g[q, r] r conj(a^(r-1))``. With ``s = conj(a^R)`` the rest is Horner's rule over q in float64:
``dc = p``, ``da = conj(c) p'`` where ``p = sum_q V[q] s^q`` and ``p' = sum_q W[q] s^q + (ds/da) sum_q V[q] q s^(q-1)``.
"""

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.cpu.ssm_kernel_tables import COLUMNS, ROWS, block_length, by_growth, copy, grain, planar, product


def ssm_kernel_pullback(a: Array, c: Array, dk: Array, *, workers) -> tuple[Array, Array]:
    """See `linscan.ops.ssm_kernel.ssm_kernel_vjp`: the gradients of `a` and `c`, unreduced over broadcast axes."""
    dc = da = np.zeros(a.shape, "D" if a.dtype.kind == "c" else "d")
    if dk.size and a.size:
        a3, dk = planar(a), dk.astype(accum_dtype(dk.dtype), copy=False)
        dc, slope = _polynomial(a3, np.ascontiguousarray(dk.real), workers)
        if dk.dtype.kind == "c":
            imag = _polynomial(a3, np.ascontiguousarray(dk.imag), workers)
            dc, slope = dc + 1j * imag[0], slope + 1j * imag[1]
        da = np.conj(c) * slope
    return da.astype(a.dtype, copy=False), dc.astype(a.dtype, copy=False)


def _polynomial(a, g, workers):
    """``p = sum_l g_l conj(a)^l`` and its derivative by conj(a), for real `g`; (channels, states)."""
    p, slope = np.zeros_like(a), np.zeros_like(a)
    tables, loops = by_growth(a, g.shape[1], g.dtype)
    if len(tables):
        _by_tables(a, g, p, slope, tables, workers)
    if len(loops):
        parallel_for(lambda lo, hi: _loop(a, g, p, slope, loops[lo:hi]), len(loops), workers=workers)
    return tuple(x.view("D" if a.shape[2] == 2 else "d")[..., 0] for x in (p, slope))


def _by_tables(a, g, p, slope, channels, workers):
    states, length = a.shape[1], g.shape[1]
    block = block_length(length, 4 * states)
    blocks = -(-length // block)
    height, width = -(-blocks // ROWS) * ROWS, -(-4 * states // COLUMNS) * COLUMNS

    def body(lo, hi):
        rows, table, found = (np.zeros(s, g.dtype) for s in ((height, block), (block, width), (height, width)))
        scratch = np.empty((4, states)), np.empty((6, states))
        _gradients(a, g, p, slope, channels[lo:hi], rows, table, found, *scratch, blocks)

    parallel_for(body, len(channels), grain=grain(4 * length * states), workers=workers)


@jit
def _gradients(a, g, p, slope, channels, rows, table, found, last, x, blocks):
    mode = flush_subnormals()
    block, length = len(table), g.shape[1]
    for h in channels:
        for q in range(blocks):
            copy(g, h * length + q * block, rows, q * block, min(block, length - q * block))
        _fill(a[h], table, last)
        for q in range(0, len(rows), ROWS):
            product(rows, q, table, found, q)
        _horner(last, found, blocks, x, p[h], slope[h])
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
def _horner(last, found, blocks, x, p, slope):
    """p and p' of all states from V and W in the rows of `found`."""
    states, pair = p.shape
    pr, pi, er, ei, wr, wi = x[0], x[1], x[2], x[3], x[4], x[5]
    for n in range(states):
        pr[n], pi[n], er[n], ei[n], wr[n], wi[n] = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for q in range(blocks - 1, -1, -1):
        u = found[q]
        for n in range(states):
            sr, si = last[0, n], -last[1, n]
            er[n], ei[n] = er[n] * sr - ei[n] * si + pr[n], er[n] * si + ei[n] * sr + pi[n]
            pr[n], pi[n] = pr[n] * sr - pi[n] * si + u[n], pr[n] * si + pi[n] * sr - u[states + n]
            wr[n], wi[n] = wr[n] * sr - wi[n] * si + u[2 * states + n], wr[n] * si + wi[n] * sr - u[3 * states + n]
    for n in range(states):
        tr, ti = last[2, n], -last[3, n]
        p[n, pair - 1], slope[n, pair - 1] = pi[n], wi[n] + er[n] * ti + ei[n] * tr
        p[n, 0], slope[n, 0] = pr[n], wr[n] + er[n] * tr - ei[n] * ti


@jit
def _loop(a, g, p, slope, channels):
    """Horner's rule one sample at a time: where |a| > 1 it overflows no earlier than the gradient."""
    mode = flush_subnormals()
    states, pair = a.shape[1:]
    for h in channels:
        for n in range(states):
            ar, ai = a[h, n, 0], (-a[h, n, 1] if pair == 2 else 0.0)
            pr, pi, dr, di = 0.0, 0.0, 0.0, 0.0
            for t in range(g.shape[1] - 1, -1, -1):
                dr, di = dr * ar - di * ai + pr, dr * ai + di * ar + pi
                pr, pi = pr * ar - pi * ai + g[h, t], pr * ai + pi * ar
            p[h, n, pair - 1], slope[h, n, pair - 1] = pi, di
            p[h, n, 0], slope[h, n, 0] = pr, dr
    restore_subnormals(mode)
