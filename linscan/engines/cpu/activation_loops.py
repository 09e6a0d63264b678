"""Loops over the entries of a tile for each activation, and over the rows of a tile for gates."""

import numpy as np

from linscan.engines.cpu import rnn_math
from linscan.engines.cpu.activation_math import logistic, normal, tanh_gate
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals

_SOME = 1 << 11  # entries of a gate that stay in the first-level cache


@jit
def gelu(x, y, c):
    mode = flush_subnormals()
    for i in range(len(y)):
        below, _ = normal(x[i], c)
        y[i] = x[i] * below
    restore_subnormals(mode)


@jit
def gelu_back(dy, x, dx, c):
    mode = flush_subnormals()
    for i in range(len(dx)):
        below, density = normal(x[i], c)
        dx[i] = dy[i] * (below + x[i] * density)
    restore_subnormals(mode)


@jit
def gelu_tanh(x, y, c):
    mode = flush_subnormals()
    for i in range(len(y)):
        share, _, _ = tanh_gate(x[i], c)
        y[i] = x[i] * share
    restore_subnormals(mode)


@jit
def gelu_tanh_back(dy, x, dx, c):
    mode = flush_subnormals()
    for i in range(len(dx)):
        share, rest, slope = tanh_gate(x[i], c)
        dx[i] = dy[i] * (share + x[i] * (share * rest * slope))
    restore_subnormals(mode)


@jit
def silu(x, y, c):
    mode = flush_subnormals()
    for i in range(len(y)):
        share, _ = logistic(x[i], c)
        y[i] = x[i] * share
    restore_subnormals(mode)


@jit
def silu_back(dy, x, dx, c):
    mode = flush_subnormals()
    for i in range(len(dx)):
        share, rest = logistic(x[i], c)
        dx[i] = dy[i] * (share + x[i] * (share * rest))
    restore_subnormals(mode)


@jit
def sigmoid(x, y, c):
    mode = flush_subnormals()
    for i in range(len(y)):
        share, _ = logistic(x[i], c)
        y[i] = share
    restore_subnormals(mode)


@jit
def sigmoid_back(dy, x, dx, c):
    mode = flush_subnormals()
    for i in range(len(dx)):
        share, rest = logistic(x[i], c)
        dx[i] = dy[i] * (share * rest)
    restore_subnormals(mode)


@jit
def tanh(x, y, c):
    mode = flush_subnormals()
    for i in range(len(y)):
        y[i] = x[i]
    rnn_math.tanh(y, c)
    restore_subnormals(mode)


@jit
def tanh_back(dy, x, dx, c):
    mode = flush_subnormals()
    for i in range(len(dx)):
        share, rest = logistic(x[i] + x[i], c)
        twice = share + share
        dx[i] = dy[i] * (twice * (rest + rest))  # 1 - tanh(x)² = 4 σ(2x) σ(-2x)
    restore_subnormals(mode)


@jit
def softplus(x, y, c):
    mode = flush_subnormals()
    for i in range(len(y)):
        y[i] = x[i]
    rnn_math.log1pexp(y, c)
    zero = c[1][-1] - c[1][-1]
    for i in range(len(y)):
        y[i] += zero if x[i] < zero else x[i]
    restore_subnormals(mode)


@jit
def softplus_back(dy, x, dx, c):
    mode = flush_subnormals()
    for i in range(len(dx)):
        share, _ = logistic(x[i], c)
        dx[i] = dy[i] * share
    restore_subnormals(mode)


@jit
def two_rows(size, like):
    """Scratch memory; at a distance of some 4096 bytes a load would wait for stores that have nothing to do with it."""
    memory = np.empty(2 * size + 64, like.dtype)
    return memory[:size], memory[size + 64 :]


@jit
def shares(z, b, share, rest, step, rows, c):
    """σ(z + b) and σ(-z - b) of some rows of `z`, `step` apart."""
    width = len(b)
    for i in range(rows):
        g, out = z[i * step :], share[i * width :]
        for j in range(width):
            out[j] = g[j] + b[j]
    for i in range(rows * width):
        share[i], rest[i] = logistic(share[i], c)


@jit
def gate(value, z, b, y, steps, c):
    """Rows of `value` and `z` begin `steps` apart, those of `y` one after the other."""
    mode = flush_subnormals()
    width = len(b)
    total, some = len(y) // width, max(1, _SOME // width)
    share, rest = two_rows(some * width, b)
    for lo in range(0, total, some):
        rows = min(some, total - lo)
        shares(z[lo * steps[1] :], b, share, rest, steps[1], rows, c)
        for i in range(rows):
            r = lo + i
            v, s, out = value[r * steps[0] :], share[i * width :], y[r * width :]
            for j in range(width):
                out[j] = v[j] * s[j]
    restore_subnormals(mode)


@jit
def gate_back(dy, value, z, b, dvalue, dz, db, steps, c):
    """The same with rows of `dvalue` and `dz`; `db` is the sum over the rows of `dz`."""
    mode = flush_subnormals()
    width = len(b)
    total, some = len(dy) // width, max(1, _SOME // width)
    share, rest = two_rows(some * width, b)
    for lo in range(0, total, some):
        rows = min(some, total - lo)
        shares(z[lo * steps[1] :], b, share, rest, steps[1], rows, c)
        for i in range(rows):
            r = lo + i
            g, v, s, t = dy[r * width :], value[r * steps[0] :], share[i * width :], rest[i * width :]
            dv, out = dvalue[r * steps[2] :], dz[r * steps[3] :]
            for j in range(width):
                s[j] *= g[j]
                dv[j] = s[j]
            for j in range(width):
                s[j] *= v[j] * t[j]
                out[j] = s[j]
            for j in range(width):
                db[j] += s[j]
    restore_subnormals(mode)
