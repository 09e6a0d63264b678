"""The intrinsics of `selective_simd` and `selective_tiles` on NumPy slices, for where kernels run as Python."""

import numpy as np

from linscan.engines.cpu.selective_vectors import STEPS, lanes_of


def copy_rows(source, i, di, target, j, dj, count, steps):
    source, target = source.reshape(-1), target.reshape(-1)
    for k in range(steps):
        target[j + k * dj : j + k * dj + count] = source[i + k * di : i + k * di + count]


def shift(real, bias, coef, d, steps, width):
    tile = real[0][: steps * width].reshape(steps, width)
    tile += bias[d : d + width]
    real[2][: steps * width] = 1


def soften(real, bias, coef, d, steps, width):
    shift(real, bias, coef, d, steps, width)
    tile, slope = (row[: steps * width] for row in (real[0], real[2]))
    slope[:] = _sigmoid(tile)
    tile[:] = np.logaddexp(0, tile)


def gate(real, bias, coef, d, steps, width):
    tile, slope = (row[: steps * width] for row in (real[3], real[4]))
    share = _sigmoid(tile)
    slope[:] = share * (1 + tile * _sigmoid(-tile))
    tile *= share


def _sigmoid(x):
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


def advance(real, full, A, D, before, after, b, c, coef, saved, exponent, p, i, d, j, k, q, n, dp, dq, steps=1):
    lanes = lanes_of(A.dtype)
    size = n * lanes
    A, before, after, b, c = (x.reshape(-1) for x in (A, before, after, b, c))
    for step in range(steps):
        here, vectors = slice(p + step * dp, p + step * dp + lanes), slice(q + step * dq, q + step * dq + n)
        exponents = real[exponent, here] * A[i : i + size].reshape(n, lanes)
        decay = np.exp2(exponents.real)
        decay = decay if exponents.dtype.kind != "c" else decay * np.exp(1j * exponents.imag)
        driven = real[0, here] * full[0, here] * b[vectors, None]
        h = decay * before[j : j + size].reshape(n, lanes) + driven
        after[k : k + size] = h.ravel()
        for decays in saved:
            decays[k - size : k] = decay.ravel()
        y = c[vectors] @ h + D[d : d + lanes] * full[0, here]
        full[1, here] = y if saved else real[3, here] * y
        before, j, k = after, k, k + size * len(saved)


def advance_steps(*args):
    advance(*args, steps=STEPS)


def retreat(real, full, A, D, h, a, flow, dA, dB, dC, dD, b, c, coef, exponent, fresh, p, i, d, s, e, j, q, t, n):
    lanes = lanes_of(A.dtype)
    size, here = n * lanes, slice(p, p + lanes)
    A, flow, dA, dB, dC, dD, b, c = (x.reshape(-1) for x in (A, flow, dA, dB, dC, dD, b, c))
    A, decay, old, new = (x.reshape(n, lanes) for x in (A[i : i + size], a[j : j + size], *_pair(h, j, size)))
    u, g = full[0, here], real[3, here] * full[2, here]
    grad = c[q : q + n, None].conj() * g + flow[s : s + size].reshape(n, lanes)
    through, on = (np.zeros_like(grad) if fresh else x.conj() * grad for x in (decay * old, decay))
    flow[s : s + size] = on.ravel()
    dA[s : s + size] += (real[exponent, here] * through).ravel()
    dB[t : t + n] += (np.conj(real[0, here] * u) * grad).sum(1)
    dC[t : t + n] += (new.conj() * g).sum(1)
    dx = b[q : q + n].conj() @ grad
    real[6, here] = (full[1, here].conj() * full[2, here]).real * real[4, here]
    real[5, here] = ((u.conj() * dx).real + (A.conj() * through).sum(0).real) * real[2, here]
    full[3, here] = D[d : d + lanes].conj() * g + real[0, here] * dx
    dD[e : e + lanes] += u.conj() * g


def _pair(h, j, size):
    return h[j : j + size], h[j + size : j + 2 * size]
