"""Log-space scan kernels on tiles of (times, channels): the inner loop is over channels and becomes vectors.

A logaddexp at every step would wait for an exponential and a logarithm at every step. Instead the running maximum
``c[t] = max(a[t] + c[t-1], b[t])``, which needs neither, is taken out: with ``h[t] = c[t] + log(u[t])``,

    u[t] = exp(a[t] + c[t-1] - c[t]) u[t-1] + exp(b[t] - c[t]),

where one of the two exponentials is 1 and the other one is ``exp(-|a[t] + c[t-1] - b[t]|)``. So there are two cheap
recurrences, and between and behind them an exponential and a logarithm of whole tiles.
"""

import numpy as np

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals


@jit
def maxima(a, b, starts, top, c, exponents, reverse):
    """The running maximum `c`, and the `exponents` for `sums` (or None); `top` (channels,) is carried."""
    length, low = len(b), b.dtype.type(-np.inf)
    for i in range(length):
        t = length - 1 - i if reverse else i
        at, bt, ct = a[t], b[t], c[t]
        for d in range(top.size):
            older, newer = at[d] + top[d], bt[d]
            if starts is not None:
                older = low if starts[t, d] else older
            if exponents is not None:
                exponents[t, d] = -abs(older - newer)
            new = older if older > newer or older != older else newer  # whichever is NaN stays
            top[d] = new
            ct[d] = new


@jit
def sums(b, c, ratios, total, values, mean, means, kept, reverse):
    """From ``exp(exponents)`` in `ratios` to u, in place, 1 where `c` is not finite; with `values`, to the means.

    `total` and `mean` (channels,) are u and y[t-1], and carried; `kept` is scratch. A weight of 0 leaves out what is
    not finite.
    """
    mode = flush_subnormals()
    length, zero, one = len(b), b.dtype.type(0), b.dtype.type(1)
    for i in range(length):
        t = length - 1 - i if reverse else i
        bt, ct, rt = b[t], c[t], ratios[t]
        for d in range(total.size):
            high, ratio = ct[d], rt[d]
            older, newer = (ratio, one) if high == bt[d] else (one, ratio)
            if high == -np.inf:
                older, newer = zero, zero
            older *= total[d] if older != zero else zero
            u = older + newer
            total[d] = u
            rt[d] = u if high - high == zero else one
            if values is not None:
                scale = one / u if high != -np.inf else zero
                p, q = older * scale, newer * scale
                kept[d] = p
                mean[d] = mean[d] if p != zero else zero
                means[t, d] = q * (values[t, d] if q != zero else zero)
        if values is not None:
            # Apart from the loop above: of two products in one sum, vectors and what is left over of them might each
            # fuse another one with the addition.
            for d in range(total.size):
                mean[d] = kept[d] * mean[d] + means[t, d]
                means[t, d] = mean[d]
    restore_subnormals(mode)
