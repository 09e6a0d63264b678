"""FIR filters where time is not the last axis: what follows it (channels) is contiguous and has weights of its own.

A signal of T steps and D channels is read as one flat row in which a tap reaches back a multiple of D. The inner loop
runs over a *tile* of neighbouring elements, over several time steps if there are few channels; the weights are laid out
like the tile, so that 3 channels are as fast as 300.
"""

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.conv_layout import cut, unmarked
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for

_TILE = 512  # elements of a tile, from as many whole time steps as fit
_CHUNK = 1024  # with more channels than this, one chunk of them after the other
_SPAN = 256  # tiles of a piece at most, and so terms of a partial sum of a gradient
_GRAIN = 1 << 15  # products a thread must get for its hand-over to pay


def tile_steps(channels: int) -> int:
    """How many time steps make a tile."""
    return max(1, _TILE // channels)


def fir(u: Array, w: Array, bias: Array, y: Array, pieces: Array, channels: int, stride: int, workers) -> None:
    """``y[t] = bias + Σ_j w[j] u[t - stride j]``; u and y (B, T·D), w (R, K, D) and bias (R, D), contiguous."""
    steps, width = tile_steps(channels), w.shape[1]
    spans = cut(pieces, _SPAN * steps)
    grain = max(1, _GRAIN * len(spans) // max(1, y.size * max(1, width)))
    if width == 4 and abs(stride) == 1 and steps == 1:
        inside, spans = _apart(spans, stride)
        turned = w if stride < 0 else np.ascontiguousarray(w[:, ::-1])
        back = 3 if stride > 0 else 0
        parallel_for(
            lambda lo, hi: _fir4(unmarked(u), turned, bias, y, inside, channels, back, lo, hi),
            len(inside),
            grain=grain,
            workers=workers,
        )
    w, bias = np.tile(w, steps), np.tile(bias, steps)
    parallel_for(
        lambda lo, hi: _fir(unmarked(u), w, bias, y, spans, channels, stride, lo, hi),
        len(spans),
        grain=grain,
        workers=workers,
    )


def _apart(spans: Array, stride: int) -> tuple[Array, Array]:
    """The pairs of outputs that see all of four neighbouring inputs, and the few others."""
    first, last = (spans[:, 3] + 3, spans[:, 4]) if stride > 0 else (spans[:, 3], spans[:, 4] - 3)
    lo = np.minimum(np.maximum(spans[:, 5], first), spans[:, 6])
    hi = lo + np.maximum(np.minimum(spans[:, 6], last) - lo, 0) // 2 * 2
    inside, before, after = spans.copy(), spans.copy(), spans.copy()
    inside[:, 5], inside[:, 6], before[:, 6], after[:, 5] = lo, hi, lo, hi
    others = np.concatenate([before, after])
    return inside[inside[:, 5] < inside[:, 6]], others[others[:, 5] < others[:, 6]]


def fir_taps(u: Array, dy: Array, shape: tuple[int, int, int], pieces: Array, stride: int, workers) -> Array:
    """``dw[j] = Σ_t dy[t] conj(u[t - stride j])``, of `shape` (R, K, D), in double precision, in a fixed order."""
    wide = np.complex128 if u.dtype.kind == "c" else np.float64
    _, width, channels = shape
    spans = cut(pieces, _SPAN * tile_steps(channels))
    parts = np.zeros((len(spans), width, tile_steps(channels) * channels), u.dtype)
    grain = max(1, _GRAIN * len(spans) // max(1, dy.size * max(1, width)))
    parallel_for(
        lambda lo, hi: _taps(unmarked(u), unmarked(dy), parts, spans, channels, stride, lo, hi),
        len(spans),
        grain=grain,
        workers=workers,
    )
    dw = np.zeros(shape, wide)
    np.add.at(dw, spans[:, 2], parts.reshape(len(spans), width, -1, channels).sum(2, dtype=wide))
    return dw


@jit
def _fir(u, w, bias, y, spans, channels, stride, lo, hi):
    mode = flush_subnormals()
    width, tile = w.shape[1], w.shape[2]
    steps = tile // channels
    chunk = tile if steps > 1 else _CHUNK
    for q in range(lo, hi):
        out, x, taps, start = y[spans[q, 0]], u[spans[q, 1]], w[spans[q, 2]], bias[spans[q, 2]]
        x0, x1, end = spans[q, 3], spans[q, 4], spans[q, 6]
        for c0 in range(0, tile, chunk):
            for t in range(spans[q, 5], end, steps):
                m = min(steps, end - t)
                n = min(m * channels - c0, chunk)
                base = t * channels + c0
                block, b = out[base : base + n], start[c0 : c0 + n]
                j = 0
                while j < width:
                    ahead = t - stride * j
                    at, hop = base - channels * stride * j, channels * stride
                    far = ahead - 3 * stride
                    if j == 0 and width >= 4 and min(ahead, far) >= x0 and max(ahead, far) + m <= x1:
                        p0, p1 = x[at : at + n], x[at - hop : at - hop + n]
                        p2, p3 = x[at - 2 * hop : at - 2 * hop + n], x[at - 3 * hop : at - 3 * hop + n]
                        w0, w1, w2, w3 = taps[0, c0:], taps[1, c0:], taps[2, c0:], taps[3, c0:]
                        for i in range(n):
                            block[i] = b[i] + (w0[i] * p0[i] + w1[i] * p1[i] + w2[i] * p2[i] + w3[i] * p3[i])
                        j = 4
                        continue
                    if j == 0:
                        for i in range(n):
                            block[i] = b[i]
                    if j + 2 <= width and min(ahead, ahead - stride) >= x0 and max(ahead, ahead - stride) + m <= x1:
                        p0, p1 = x[at : at + n], x[at - hop : at - hop + n]
                        w0, w1 = taps[j, c0 : c0 + n], taps[j + 1, c0 : c0 + n]
                        for i in range(n):
                            block[i] += w0[i] * p0[i] + w1[i] * p1[i]
                        j += 2
                        continue
                    first, last = max(t, x0 + stride * j), min(t + m, x1 + stride * j)
                    if first < last:
                        skip = (first - t) * channels
                        size = n if last - first == m else (last - first) * channels
                        part, p = block[skip : skip + size], x[at + skip : at + skip + size]
                        v = taps[j, c0 + skip : c0 + skip + size]
                        for i in range(size):
                            part[i] += v[i] * p[i]
                    j += 1
    restore_subnormals(mode)


@jit
def _fir4(u, w, bias, y, spans, channels, back, lo, hi):
    """Four taps without edges, two steps at once: five inputs serve two outputs. `w` is in the order of the inputs."""
    mode = flush_subnormals()
    for q in range(lo, hi):
        out, x, taps, start = y[spans[q, 0]], u[spans[q, 1]], w[spans[q, 2]], bias[spans[q, 2]]
        for c0 in range(0, channels, _CHUNK):
            n = min(channels - c0, _CHUNK)
            b, w0, w1, w2, w3 = start[c0:], taps[0, c0:], taps[1, c0:], taps[2, c0:], taps[3, c0:]
            for t in range(spans[q, 5], spans[q, 6], 2):
                at, to = (t - back) * channels + c0, t * channels + c0
                p0, p1 = x[at : at + n], x[at + channels : at + channels + n]
                p2, p3 = x[at + 2 * channels :][:n], x[at + 3 * channels :][:n]
                p4 = x[at + 4 * channels :][:n]
                y0, y1 = out[to : to + n], out[to + channels : to + channels + n]
                for i in range(n):
                    c, v0, v1, v2, v3 = b[i], w0[i], w1[i], w2[i], w3[i]
                    z0, z1, z2, z3, z4 = p0[i], p1[i], p2[i], p3[i], p4[i]
                    y0[i] = c + (v0 * z0 + v1 * z1 + v2 * z2 + v3 * z3)
                    y1[i] = c + (v0 * z1 + v1 * z2 + v2 * z3 + v3 * z4)
    restore_subnormals(mode)


@jit
def _taps(u, dy, parts, spans, channels, stride, lo, hi):
    mode = flush_subnormals()
    width, tile = parts.shape[1], parts.shape[2]
    steps = tile // channels
    for q in range(lo, hi):
        g, x = dy[spans[q, 0]], u[spans[q, 1]]
        for t in range(spans[q, 5], spans[q, 6], steps):
            m = min(steps, spans[q, 6] - t)
            for j in range(width):
                shift = stride * j
                first, last = max(t, spans[q, 3] + shift), min(t + m, spans[q, 4] + shift)
                if first < last:
                    n, skip = (last - first) * channels, (first - t) * channels
                    at, back = first * channels, (first - shift) * channels
                    total, a, b = parts[q, j, skip : skip + n], g[at : at + n], x[back : back + n]
                    for i in range(n):
                        total[i] += a[i] * np.conj(b[i])
    restore_subnormals(mode)
