"""Loops of the norms and of the direct term over a tile, whose rows lie one after the other."""

from functools import partial

import numpy as np

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals


@partial(jit, sums=True)
def total(x, zero):
    for i in range(len(x)):
        zero += x[i]
    return zero


@partial(jit, sums=True)
def squares(x, zero):
    for i in range(len(x)):
        zero += x[i] * x[i]
    return zero


@partial(jit, sums=True)
def inner(x, y, z, zero):
    """The sums of x y and of x y z."""
    both = zero
    for i in range(len(x)):
        zero += x[i] * y[i]
        both += x[i] * y[i] * z[i]
    return zero, both


@jit
def rows(x, scale, shift, numbers, y, mean, r, centred):
    """Rows by their own statistics; `numbers` are eps, 0, 1 and 1 / width; `mean` is left alone unless `centred`."""
    mode = flush_subnormals()
    width = len(scale)
    eps, zero, one, share = numbers
    for i in range(len(r)):
        a, b, m = x[i * width : (i + 1) * width], y[i * width : (i + 1) * width], zero
        if centred:
            mean[i] = m = total(a, zero) * share
        for j in range(len(b)):
            b[j] = a[j] - m
        r[i] = q = one / np.sqrt(squares(b, zero) * share + eps)
        for j in range(len(b)):
            b[j] = b[j] * q * scale[j] + shift[j]
    restore_subnormals(mode)


@jit
def rows_back(dy, x, scale, mean, r, numbers, dx, dscale, dshift, centred):
    """Their pullback; `dscale` and `dshift` grow by the sums over these rows."""
    mode = flush_subnormals()
    width, normal = len(scale), np.empty_like(scale)
    _, zero, _, share = numbers
    for i in range(len(r)):
        g, a, out = dy[i * width :], x[i * width :], dx[i * width :]
        m, q = mean[i] if centred else zero, r[i]
        for j in range(width):
            normal[j] = (a[j] - m) * q
        for j in range(width):
            dscale[j] += g[j] * normal[j]
            dshift[j] += g[j]
        direct, through = inner(dy[i * width : (i + 1) * width], scale, normal, zero)
        direct = direct * share if centred else zero
        through *= share
        for j in range(width):
            out[j] = q * (g[j] * scale[j] - direct - normal[j] * through)
    restore_subnormals(mode)


@jit
def moment(x, mean, out, squared):
    """`out` grows by the sum of the rows about `mean`, or of their squares."""
    mode = flush_subnormals()
    width = len(mean)
    for i in range(len(x) // width):
        a = x[i * width :]
        if squared:
            for j in range(width):
                out[j] += (a[j] - mean[j]) * (a[j] - mean[j])
        else:
            for j in range(width):
                out[j] += a[j] - mean[j]
    restore_subnormals(mode)


@jit
def columns(x, mean, factor, shift, y):
    """``(x - mean) factor + shift``."""
    mode = flush_subnormals()
    width = len(mean)
    for i in range(len(y) // width):
        a, out = x[i * width :], y[i * width :]
        for j in range(width):
            out[j] = (a[j] - mean[j]) * factor[j] + shift[j]
    restore_subnormals(mode)


@jit
def columns_sums(dy, x, mean, r, dscale, dshift):
    """`dscale` and `dshift` grow by the sums over these rows of dy times the normal rows, and of dy."""
    mode = flush_subnormals()
    width = len(mean)
    for i in range(len(x) // width):
        g, a = dy[i * width :], x[i * width :]
        for j in range(width):
            dscale[j] += g[j] * ((a[j] - mean[j]) * r[j])
            dshift[j] += g[j]
    restore_subnormals(mode)


@jit
def columns_back(dy, x, mean, factors, dx):
    """``(dy - direct - (x - mean) through) factor``."""
    mode = flush_subnormals()
    width = len(mean)
    factor, direct, through = factors
    for i in range(len(dx) // width):
        g, a, out = dy[i * width :], x[i * width :], dx[i * width :]
        for j in range(width):
            out[j] = g[j] - direct[j] - (a[j] - mean[j]) * through[j]
        for j in range(width):
            out[j] *= factor[j]
    restore_subnormals(mode)


@jit
def add_product(y, u, D, out):
    """``y + D u``."""
    mode = flush_subnormals()
    width = len(D)
    for i in range(len(out) // width):
        a, b, row = y[i * width :], u[i * width :], out[i * width :]
        for j in range(width):
            row[j] = a[j] + D[j] * b[j]
    restore_subnormals(mode)


@jit
def add_product_back(dy, u, D, du, dD):
    """``D dy``; `dD` grows by the sum over these rows of ``dy u``."""
    mode = flush_subnormals()
    width = len(D)
    for i in range(len(du) // width):
        g, b, out = dy[i * width :], u[i * width :], du[i * width :]
        for j in range(width):
            out[j] = D[j] * g[j]
        for j in range(width):
            dD[j] += g[j] * b[j]
    restore_subnormals(mode)
