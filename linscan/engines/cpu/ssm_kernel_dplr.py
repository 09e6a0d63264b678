"""The Cauchy sums of `ssm_kernel_dplr` on the CPU, a tile of nodes at a time.

A sum has the form ``sum_n w[j, n] / D[n, k]`` with ``D = base_k + alpha_n p_k + beta_n q_k``; `w`, `alpha`, `beta` are
real. The reciprocals of a tile are made once, real and imaginary parts apart, and serve all sums through one product.
"""

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.cpu.ssm_kernel_tables import COLUMNS, ROWS, grain, product

_NODES = 64  # of a tile


def ssm_kernel_dplr(alpha: Array, beta: Array, w: Array, base: Array, p: Array, q: Array, *, workers) -> Array:
    """The sums, (channels, J, nodes) complex128, of `w` (channels, J, N)."""
    channels, count, states = w.shape
    sums = (np.empty if states else np.zeros)((channels, count, len(base)), np.complex128)
    tiles = -(-len(base) // _NODES)
    nodes = np.stack((base.real, base.imag, p.real, p.imag, q.real, q.imag))

    def body(lo, hi):
        rows = np.zeros((_up(count, ROWS), _up(states, 4)))
        table, found = np.zeros((rows.shape[1], 2 * _NODES)), np.empty((len(rows), 2 * _NODES))
        _sums(alpha, beta, w, nodes, sums.view(np.float64), lo, hi, tiles, rows, table, found)

    if w.size and len(base):
        parallel_for(body, channels * tiles, grain=grain(2 * _NODES * states * (count + 4)), workers=workers)
    return sums


def ssm_kernel_dplr_pullback(
    alpha: Array, beta: Array, w: Array, base: Array, p: Array, q: Array, dsums: Array, *, workers
) -> tuple[Array, Array, Array]:
    """The gradients of `alpha`, `beta` and `w` from those of the sums."""
    channels, count, states = w.shape
    dalpha, dbeta, dw = np.zeros_like(alpha), np.zeros_like(beta), np.zeros_like(w)
    nodes = np.stack((base.real, base.imag, p.real, p.imag, q.real, q.imag))
    dsums = np.ascontiguousarray(dsums).view(np.float64)

    def body(lo, hi):
        wide = _up(states, COLUMNS)
        weights = np.zeros((_up(count, 4), wide))
        g, g_rows = np.zeros((_up(2 * _NODES, ROWS), len(weights))), np.zeros((_up(count, ROWS), 2 * _NODES))
        y, dy, found = np.zeros((2 * _NODES, wide)), np.zeros((len(g), wide)), np.zeros((ROWS, wide))
        _gradients(alpha, beta, w, nodes, dsums, dalpha, dbeta, dw, lo, hi, weights, g, g_rows, y, dy, found)

    if w.size and len(base):
        parallel_for(body, channels, grain=grain(4 * len(base) * states * (count + 4)), workers=workers)
    return dalpha, dbeta, dw


def _up(n, multiple):
    return -(-n // multiple) * multiple


@jit
def _sums(alpha, beta, w, nodes, sums, lo, hi, tiles, rows, table, found):
    mode = flush_subnormals()
    count, states = w.shape[1:]
    for unit in range(lo, hi):
        h, first = unit // tiles, unit % tiles * _NODES
        for j in range(count):
            for n in range(states):
                rows[j, n] = w[h, j, n]
        tile = nodes[:, first : first + _NODES]
        re, im, pr, pi, qr, qi = tile[0], tile[1], tile[2], tile[3], tile[4], tile[5]
        for n in range(states):
            a, b, row = alpha[h, n], beta[h, n], table[n]
            yr, yi = row[:_NODES], row[_NODES:]
            for k in range(len(re)):
                dr, di = re[k] + a * pr[k] + b * qr[k], im[k] + a * pi[k] + b * qi[k]
                scale = 1 / (dr * dr + di * di)
                yr[k], yi[k] = dr * scale, -di * scale
        for j in range(0, len(rows), ROWS):
            product(rows, j, table, found, j)
        for j in range(count):
            to, done = sums[h, j, 2 * first : 2 * (first + len(re))], found[j]
            for k in range(len(re)):
                to[2 * k], to[2 * k + 1] = done[k], done[_NODES + k]
    restore_subnormals(mode)


@jit
def _gradients(alpha, beta, w, nodes, dsums, dalpha, dbeta, dw, lo, hi, weights, g, g_rows, y, dy, found):
    # Row 2k holds the real and row 2k + 1 the imaginary part of what belongs to node k; states run along the rows.
    mode = flush_subnormals()
    count, states = w.shape[1:]
    for h in range(lo, hi):
        for j in range(count):
            for n in range(states):
                weights[j, n] = w[h, j, n]
        for first in range(0, nodes.shape[1], _NODES):
            tile = nodes[:, first : first + _NODES]
            size = tile.shape[1]
            for j in range(count):
                source = dsums[h, j, 2 * first : 2 * (first + size)]
                for i in range(2 * _NODES):
                    g_rows[j, i] = g[i, j] = source[i] if i < 2 * size else 0.0
            for k in range(size):
                re, im, pr, pi, qr, qi = tile[0, k], tile[1, k], tile[2, k], tile[3, k], tile[4, k], tile[5, k]
                yr, yi = y[2 * k], y[2 * k + 1]
                for n in range(states):
                    dr = re + alpha[h, n] * pr + beta[h, n] * qr
                    di = im + alpha[h, n] * pi + beta[h, n] * qi
                    scale = 1 / (dr * dr + di * di)
                    yr[n], yi[n] = dr * scale, -di * scale
            for i in range(0, len(g), ROWS):
                product(g, i, weights, dy, i)
            for j in range(0, len(g_rows), ROWS):
                product(g_rows, j, y, found, 0)
                for i in range(min(ROWS, count - j)):
                    for n in range(states):
                        dw[h, j + i, n] += found[i, n]
            for k in range(size):
                pr, pi, qr, qi = tile[2, k], tile[3, k], tile[4, k], tile[5, k]
                yr, yi, er, ei = y[2 * k], y[2 * k + 1], dy[2 * k], dy[2 * k + 1]
                for n in range(states):  # dD = -conj(y^2) dy
                    sr, si = yr[n] * yr[n] - yi[n] * yi[n], -2 * yr[n] * yi[n]
                    dr, di = si * ei[n] - sr * er[n], -sr * ei[n] - si * er[n]
                    dalpha[h, n] += pr * dr + pi * di
                    dbeta[h, n] += qr * dr + qi * di
    restore_subnormals(mode)
