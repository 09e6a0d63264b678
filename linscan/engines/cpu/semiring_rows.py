"""Log-space scan kernels on tiles: (times, channels), where the inner loop becomes vectors, and (rows, times).

A logaddexp at every step would wait for an exponential and a logarithm at every step. Instead the running maximum
``c[t] = max(a[t] + c[t-1], b[t])``, which needs neither, is taken out: with ``h[t] = c[t] + log(u[t])``,

    u[t] = exp(a[t] + c[t-1] - c[t]) u[t-1] + exp(b[t] - c[t]),

where one of the two exponentials is 1 and the other one is ``exp(-|a[t] + c[t-1] - b[t]|)``. So there are two cheap
recurrences, and between and behind them an exponential and a logarithm of whole tiles.
"""

import numpy as np

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals


@jit
def _drift(a, newer):
    """`a`, or the NaN that comes: with it in the older term, one instruction finds a maximum that keeps every NaN."""
    return newer if newer != newer else a


@jit
def _restart(starts, older, newer):
    return (newer if newer != newer else np.float32(-np.inf)) if starts else older


@jit
def maxima_columns(a, b, starts, top, c, exponents, reverse):
    """The running maximum `c`, and the `exponents` for the sums (or None); `top` (channels,) is carried."""
    length = len(b)
    for i in range(length):
        t = np.uintp(length - 1 - i if reverse else i)
        at, bt, ct = a[t], b[t], c[t]
        for d in range(top.size):
            newer = bt[d]
            older = _drift(at[d], newer) + top[d]
            if starts is not None:
                older = _restart(starts[t, d], older, newer)
            if exponents is not None:
                exponents[t, d] = -abs(older - newer)
            top[d] = newer if newer > older else older
            ct[d] = top[d]


@jit
def maxima_rows(a, b, starts, top, c, exponents, reverse):
    """The same on (rows, times)."""
    length = b.shape[1]
    for r in range(top.size):
        high, ar, br, cr = top[r], a[r], b[r], c[r]
        for i in range(length):
            t = np.uintp(length - 1 - i if reverse else i)
            newer = br[t]
            older = _drift(ar[t], newer) + high
            if starts is not None:
                older = _restart(starts[r, t], older, newer)
            if exponents is not None:
                exponents[r, t] = -abs(older - newer)
            high = newer if newer > older else older
            cr[t] = high
        top[r] = high


@jit
def _factors(high, newest, ratio, one):
    """What u[t-1] is multiplied with and what is added to it: `ratio` and 1 in one order or the other, or nothing."""
    if high == -np.inf:
        return one - one, one - one
    return (ratio, one) if high == newest else (one, ratio)


@jit
def sums_columns(b, c, ratios, total, values, mean, means, kept, reverse):
    """From ``exp(exponents)`` in `ratios` to u, in place, 1 where `c` is not finite; with `values`, to the means.

    `total` and `mean` (channels,) are u and y[t-1], and carried; `kept` is scratch. A weight of 0 leaves out what is
    not finite.
    """
    mode = flush_subnormals()
    length, zero, one = len(b), b.dtype.type(0), b.dtype.type(1)
    for i in range(length):
        t = np.uintp(length - 1 - i if reverse else i)
        bt, ct, rt = b[t], c[t], ratios[t]
        for d in range(total.size):
            high = ct[d]
            past = total[d]
            older, newer = _factors(high, bt[d], rt[d], one)
            older = older * (past if older != zero else zero)
            u = older + newer
            total[d] = u
            rt[d] = u if high - high == zero else one
            if values is not None:
                scale = one / (u if u != zero else one)
                value, past, p, q = values[t, d], mean[d], older * scale, newer * scale
                kept[d] = p
                mean[d] = past if p != zero else zero
                means[t, d] = q * (value if q != zero else zero)
        if values is not None:
            # Apart from the loop above: of two products in one sum, vectors and what is left over of them might each
            # fuse another one with the addition.
            for d in range(total.size):
                mean[d] = kept[d] * mean[d] + means[t, d]
                means[t, d] = mean[d]
    restore_subnormals(mode)


@jit
def sums_rows(b, c, ratios, total, values, mean, means, kept, reverse):
    """The same on (rows, times)."""
    mode = flush_subnormals()
    length, zero, one = b.shape[1], b.dtype.type(0), b.dtype.type(1)
    for r in range(total.size):
        u, br, cr, rr = total[r], b[r], c[r], ratios[r]
        if values is not None:
            y = mean[r]
        for i in range(length):
            t = np.uintp(length - 1 - i if reverse else i)
            high = cr[t]
            older, newer = _factors(high, br[t], rr[t], one)
            older = older * (u if older != zero else zero)
            u = older + newer
            rr[t] = u if high - high == zero else one
            if values is not None:
                scale = one / (u if u != zero else one)
                value, p, q = values[r, t], older * scale, newer * scale
                y = p * (y if p != zero else zero) + q * (value if q != zero else zero)
                means[r, t] = y
        total[r] = u
        if values is not None:
            mean[r] = y
    restore_subnormals(mode)
