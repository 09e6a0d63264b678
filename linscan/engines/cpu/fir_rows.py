"""FIR filters on rows that are contiguous in time: the plain sum, for `short_conv` and for short kernels of `fft_conv`.

Work comes in pieces, as `conv_layout` describes. Within one, a block of outputs stays in the first-level cache while
the taps pass over it, four at a time.
"""

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.conv_layout import cut, unmarked
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for

_BLOCK = 1024  # outputs that stay in the first-level cache
_LANES = 64  # partial sums of a gradient, side by side
_SPAN = 1 << 14  # outputs of a piece at most
_GRAIN = 1 << 15  # products a thread must get for its hand-over to pay


def fir(u: Array, w: Array, bias: Array, y: Array, pieces: Array, start: int, stride: int, workers: int | None) -> None:
    """``y[t] = bias + Σ_j w[j] u[t + start - stride j]``; all arrays two-dimensional, contiguous, of one dtype."""
    spans = cut(pieces, _SPAN)
    grain = max(1, _GRAIN * len(spans) // max(1, y.size * max(1, w.shape[1])))
    parallel_for(
        lambda lo, hi: _fir(unmarked(u), w, bias, y, spans, start, stride, lo, hi),
        len(spans),
        grain=grain,
        workers=workers,
    )


def fir_taps(u: Array, dy: Array, shape: tuple[int, int], pieces: Array, start: int, stride: int, workers) -> Array:
    """``dw[j] = Σ_t dy[t] conj(u[t + start - stride j])``, of `shape`, in double precision, summed in a fixed order."""
    spans = cut(pieces, _SPAN)
    wide = np.complex128 if u.dtype.kind == "c" else np.float64
    parts = np.zeros((len(spans), shape[1]), wide)
    grain = max(1, _GRAIN * len(spans) // max(1, dy.size * max(1, shape[1])))
    parallel_for(
        lambda lo, hi: _taps(unmarked(u), unmarked(dy), parts, spans, start, stride, lo, hi),
        len(spans),
        grain=grain,
        workers=workers,
    )
    dw = np.zeros(shape, wide)
    np.add.at(dw, spans[:, 2], parts)
    return dw


@jit
def _fir(u, w, bias, y, spans, start, stride, lo, hi):
    mode = flush_subnormals()
    width = w.shape[1]
    for q in range(lo, hi):
        out, x, taps, b = y[spans[q, 0]], u[spans[q, 1]], w[spans[q, 2]], bias[spans[q, 2]]
        x0, x1, end = spans[q, 3], spans[q, 4], spans[q, 6]
        for t0 in range(spans[q, 5], end, _BLOCK):
            t1 = min(t0 + _BLOCK, end)
            block = out[t0:t1]
            n = t1 - t0
            for i in range(n):
                block[i] = b
            j = 0
            while j < width:
                shift = start - stride * j
                at, far = t0 + shift, t0 + shift - 3 * stride
                if j + 4 <= width and min(at, far) >= x0 and max(at, far) + n <= x1:
                    p0, p1 = x[at : at + n], x[at - stride : at - stride + n]
                    p2, p3 = x[far + stride : far + stride + n], x[far : far + n]
                    c0, c1, c2, c3 = taps[j], taps[j + 1], taps[j + 2], taps[j + 3]
                    for i in range(n):
                        block[i] += c0 * p0[i] + c1 * p1[i] + c2 * p2[i] + c3 * p3[i]
                    j += 4
                else:
                    first, last = max(t0, x0 - shift), min(t1, x1 - shift)
                    if first < last:
                        part, p, c = out[first:last], x[first + shift : last + shift], taps[j]
                        for i in range(last - first):
                            part[i] += c * p[i]
                    j += 1
    restore_subnormals(mode)


@jit
def _taps(u, dy, parts, spans, start, stride, lo, hi):
    mode = flush_subnormals()
    lanes = np.empty(_LANES, u.dtype)
    for q in range(lo, hi):
        g, x = dy[spans[q, 0]], u[spans[q, 1]]
        for j in range(parts.shape[1]):
            shift = start - stride * j
            first, last = max(spans[q, 5], spans[q, 3] - shift), min(spans[q, 6], spans[q, 4] - shift)
            for i in range(_LANES):
                lanes[i] = 0
            t = first
            while t + _LANES <= last:
                a, b = g[t : t + _LANES], x[t + shift : t + shift + _LANES]
                for i in range(_LANES):
                    lanes[i] += a[i] * np.conj(b[i])
                t += _LANES
            total = parts[q, j]
            for i in range(_LANES):
                total += lanes[i]
            for i in range(t, last):
                total += g[i] * np.conj(x[i + shift])
            parts[q, j] = total
    restore_subnormals(mode)
