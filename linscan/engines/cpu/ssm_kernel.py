"""Diagonal convolution kernels on the CPU: two tables of powers and one small matrix product for every channel.

With ``l = R q + r`` the kernel is ``K[q, r] = sum_n (c_n a_n^(R q)) (a_n^r)``: a real matrix product of a (Q, 2N) and a
(2N, R) table, real and imaginary parts apart. The tables are made in float64 and rounded once.
"""

import numpy as np

from linscan._arrays import Array, accum_dtype, real_dtype
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for, resolve_workers
from linscan.engines.cpu.ssm_kernel_back import ssm_kernel_pullback
from linscan.engines.cpu.ssm_kernel_tables import ROWS, block_length, by_growth, copy, grain, planar, product

__all__ = ["ssm_kernel", "ssm_kernel_pullback"]


def ssm_kernel(a: Array, c: Array, length: int, *, real: bool, workers) -> Array:
    """See `linscan.ops.ssm_kernel.ssm_kernel`; `a` and `c` are (channels, states), of one dtype."""
    dtype = real_dtype(a.dtype) if real else a.dtype
    k = np.zeros((len(a), length), accum_dtype(dtype))
    if k.size and a.size:
        a3, c3 = planar(a), planar(c)
        if k.dtype.kind == "c":  # Im(c a^l) is Re(-i c a^l)
            k.real = _real_part(a3, c3, np.empty_like(k.real), workers)
            k.imag = _real_part(a3, np.stack((c3[..., 1], -c3[..., 0]), axis=-1), np.empty_like(k.imag), workers)
        else:
            _real_part(a3, c3, k, workers)
    return k.astype(dtype, copy=False)


def _real_part(a, c, k, workers):
    """Fill and return the contiguous (channels, length) array `k`."""
    tables, loops = by_growth(a, k.shape[1], k.dtype)
    if len(tables):
        _by_tables(a, c, k, tables, workers)
    if len(loops):
        parallel_for(lambda lo, hi: _loop(a, c, k, loops[lo:hi]), len(loops), workers=workers)
    return k


def _by_tables(a, c, k, channels, workers):
    (states, pair), length = a.shape[1:], k.shape[1]
    block = block_length(length, states * pair)
    blocks = -(-length // block)
    height, width = -(-blocks // ROWS) * ROWS, states * pair
    # Few channels are split by rows of their product. Each part makes the tables anew: the same bits for little work.
    parts = max(1, min(-(-resolve_workers(workers) // len(channels)), blocks // 16))

    def body(lo, hi):
        table, rows, sums = (np.zeros(shape, k.dtype) for shape in ((width, block), (height, width), (ROWS, block)))
        _kernels(a, c, k, channels, lo, hi, parts, table, rows, sums, np.empty((2, block)), np.empty((2, blocks)))

    work = length * states * pair // parts
    parallel_for(body, len(channels) * parts, grain=grain(work), workers=workers)


@jit
def _kernels(a, c, out, channels, lo, hi, parts, table, rows, sums, xr, xq):
    mode = flush_subnormals()
    pair, block, length, groups = a.shape[2], table.shape[1], out.shape[1], len(rows) // ROWS
    for unit in range(lo, hi):
        h, part = channels[unit // parts], unit % parts
        for n in range(a.shape[1]):
            ar, cr, ai, ci = a[h, n, 0], c[h, n, 0], 0.0, 0.0
            if pair == 2:
                ai, ci = a[h, n, 1], c[h, n, 1]
            m = n * pair + pair - 1
            for x in (xr, xq):
                ar, ai = _powers(ar, ai, x)
            # The tables of a^r and of c a^(R q). Real arguments have one row for both parts: the real part stays.
            for r in range(block):
                table[m, r] = -xr[1, r]
                table[n * pair, r] = xr[0, r]
            for q in range(xq.shape[1]):
                rows[q, m] = cr * xq[1, q] + ci * xq[0, q]
                rows[q, n * pair] = cr * xq[0, q] - ci * xq[1, q]
        for q in range(groups * part // parts * ROWS, groups * (part + 1) // parts * ROWS, ROWS):
            product(rows, q, table, sums, 0)
            for i in range(ROWS):
                first = (q + i) * block
                copy(sums, i * block, out, h * length + first, max(0, min(block, length - first)))
    restore_subnormals(mode)


@jit
def _powers(zr, zi, x):
    """``x[0, i] + 1j x[1, i] = z^i`` by doubling; returns the next power. Slices would take longer to compile."""
    x[0, 0], x[1, 0] = 1.0, 0.0
    have, end, sr, si = np.uintp(1), np.uintp(x.shape[1]), zr, zi
    while have < end:
        for i in range(min(have, end - have)):
            fr, fi = x[0, i], x[1, i]
            x[0, have + i], x[1, have + i] = fr * sr - fi * si, fr * si + fi * sr
        sr, si = sr * sr - si * si, 2 * sr * si
        have += have
    fr, fi = x[0, end - np.uintp(1)], x[1, end - np.uintp(1)]
    return fr * zr - fi * zi, fr * zi + fi * zr


@jit
def _loop(a, c, out, channels):
    """The plain recurrence h <- a h from h = c: it overflows exactly where the kernel does."""
    mode = flush_subnormals()
    pair = a.shape[2]
    h = np.empty((2, a.shape[1]))
    hr, hi = h[0], h[1]
    for channel in channels:
        az, cz, to = a[channel], c[channel], out[channel]
        for n in range(len(hr)):
            hr[n], hi[n] = cz[n, 0], (cz[n, 1] if pair == 2 else 0.0)
        for t in range(len(to)):
            total = 0.0
            for n in range(len(hr)):
                total += hr[n]
                ar = az[n, 0]
                if pair == 2:
                    ai = az[n, 1]
                    hr[n], hi[n] = hr[n] * ar - hi[n] * ai, hr[n] * ai + hi[n] * ar
                else:
                    hr[n] *= ar
            to[t] = total
    restore_subnormals(mode)
