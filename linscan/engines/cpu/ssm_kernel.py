"""Diagonal convolution kernels on the CPU: two tables of powers and one small matrix product for every channel.

With ``l = R q + r`` the kernel is ``K[q, r] = sum_n (c_n a_n^(R q)) (a_n^r)``: a real matrix product of a (Q, 2N) and a
(2N, R) table, real and imaginary parts apart. The tables are made in float64 and rounded once.
"""

import numpy as np

from linscan._arrays import Array, accum_dtype, real_dtype
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for, resolve_workers
from linscan.engines.cpu.ssm_kernel_back import ssm_kernel_pullback
from linscan.engines.cpu.ssm_kernel_tables import ROWS, block_length, by_growth, channel_rows, grain, planar, product

__all__ = ["ssm_kernel", "ssm_kernel_pullback"]


def ssm_kernel(a: Array, c: Array, length: int, *, real: bool, workers) -> Array:
    """See `linscan.ops.ssm_kernel.ssm_kernel`; `a` and `c` are (channels, states), of one dtype."""
    dtype = real_dtype(a.dtype) if real else a.dtype
    k = (
        np.zeros((len(a), length), accum_dtype(dtype))
        if a.size == 0
        else np.empty((len(a), length), accum_dtype(dtype))
    )
    if k.size and a.size:
        a3, c3, k3 = planar(a), planar(c), channel_rows(k)
        tables, loops = by_growth(a3, length, real_dtype(k.dtype))
        if len(tables):
            _by_tables(a3, c3, k3, tables, workers)
        if len(loops):
            parallel_for(lambda lo, hi: _loop(a3, c3, k3, loops[lo:hi]), len(loops), workers=workers)
    return k.astype(dtype, copy=False)


def _by_tables(a, c, k, channels, workers):
    (states, pair), (length, wide) = a.shape[1:], k.shape[1:]
    block = block_length(length, states * pair)
    blocks = -(-length // block)
    height, width = -(-blocks // ROWS) * ROWS, -(-states * pair // 4) * 4
    # Few channels are split by rows of their product. Each part makes the tables anew: the same bits for little work.
    parts = max(1, min(-(-resolve_workers(workers) // len(channels)), blocks // 16))

    def body(lo, hi):
        table, sums = np.zeros((width, block * wide), k.dtype), np.empty((ROWS, block * wide), k.dtype)
        rows, flat = np.zeros((height, width), k.dtype), k.reshape(len(k), -1)
        scratch = table, rows, sums, np.empty((2, block)), np.empty((2, blocks))
        _kernels(a, c, flat, channels, lo, hi, parts, wide, *scratch)

    work = length * wide * states * pair // parts
    parallel_for(body, len(channels) * parts, grain=grain(work), workers=workers)


@jit
def _kernels(a, c, out, channels, lo, hi, parts, wide, table, rows, sums, xr, xq):
    mode = flush_subnormals()
    width, triples = table.shape[1], len(rows) // ROWS
    for unit in range(lo, hi):
        h, part = channels[unit // parts], unit % parts
        for n in range(a.shape[1]):
            _fill(a[h, n], c[h, n], n * a.shape[2], table, rows, wide, xr, xq)
        for q in range(triples * part // parts * ROWS, triples * (part + 1) // parts * ROWS, ROWS):
            product(rows, q, table, sums)
            for i in range(ROWS):
                done, to = sums[i], out[h, (q + i) * width : (q + i + 1) * width]
                for r in range(len(to)):
                    to[r] = done[r]
    restore_subnormals(mode)


@jit
def _fill(a, c, m, table, rows, wide, xr, xq):
    """One state's rows of the table of a^r, and columns of the table of c a^(R q): real parts, then imaginary parts."""
    last = len(a) - 1
    ai, ci = (
        a[last] * last,
        c[last] * last,
    )  # zero for real arguments, whose two rows below are one: the real part is written last
    sr, si = _powers(a[0], ai, xr[0], xr[1])
    t0, t1, re, im = table[m], table[m + last], xr[0], xr[1]
    for r in range(len(re)):
        if wide == 2:
            t0[2 * r], t0[2 * r + 1], t1[2 * r], t1[2 * r + 1] = re[r], im[r], -im[r], re[r]
        else:  # with real arguments t0 is t1: the real part is written last
            t1[r] = -im[r]
            t0[r] = re[r]
    _powers(sr, si, xq[0], xq[1])
    re, im = xq[0], xq[1]
    for q in range(len(re)):
        rows[q, m + last] = c[0] * im[q] + ci * re[q]
        rows[q, m] = c[0] * re[q] - ci * im[q]


@jit
def _powers(zr, zi, xr, xi):
    """x[i] = z^i by doubling; returns z^len(x)."""
    xr[0], xi[0] = 1.0, 0.0
    have, sr, si = 1, zr, zi
    while have < len(xr):
        n = min(have, len(xr) - have)
        fr, fi, tr, ti = xr[:n], xi[:n], xr[have : have + n], xi[have : have + n]
        for i in range(n):
            tr[i], ti[i] = fr[i] * sr - fi[i] * si, fr[i] * si + fi[i] * sr
        sr, si = sr * sr - si * si, 2 * sr * si
        have += n
    return xr[-1] * zr - xi[-1] * zi, xr[-1] * zi + xi[-1] * zr


@jit
def _loop(a, c, out, channels):
    """The plain recurrence h <- a h from h = c: it overflows exactly where the kernel does."""
    last = a.shape[2] - 1
    h = np.empty((2, a.shape[1]))
    hr, hi = h[0], h[1]
    for channel in channels:
        az, cz, to = a[channel], c[channel], out[channel]
        for n in range(len(hr)):
            hr[n], hi[n] = cz[n, 0], (cz[n, 1] if last else 0.0)
        for t in range(len(to)):
            sr, si = 0.0, 0.0
            for n in range(len(hr)):
                sr += hr[n]
                si += hi[n]
                ar = az[n, 0]
                if last:
                    ai = az[n, 1]
                    hr[n], hi[n] = hr[n] * ar - hi[n] * ai, hr[n] * ai + hi[n] * ar
                else:
                    hr[n] *= ar
            to[t, to.shape[1] - 1] = si
            to[t, 0] = sr
