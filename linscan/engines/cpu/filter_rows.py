"""Filters with many taps, and filters with complex coefficients: one row at a time."""

import numpy as np

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals


@jit
def long_filter(x, y, b, a, state, lo, hi):
    """The rows in ``range(lo, hi)`` of `x` (outer, T, inner): each sample shifts the state and updates it as a whole.

    That is a vector operation along the taps. `b`, `a` are (outer, inner, taps), and `state` (outer, inner, order) is
    updated.
    """
    mode = flush_subnormals()
    n_b, n_a, order, inner = b.shape[2], a.shape[2], state.shape[2], x.shape[2]
    both = min(n_b, n_a)
    z = np.zeros(order + 1, x.dtype)  # z[order] stays 0: nothing comes from further back
    for row in range(lo, hi):
        g, i = row // inner, row % inner
        forward, back, xs, ys = b[g, i].copy(), a[g, i].copy(), x[g, :, i], y[g, :, i]
        z[:order] = state[g, i]
        for t in range(len(xs)):
            u = xs[t]
            v = z[0] + forward[0] * u
            for k in range(1, both):
                z[k - 1] = (z[k] + forward[k] * u) - back[k] * v
            for k in range(both, n_b):
                z[k - 1] = z[k] + forward[k] * u
            for k in range(both, n_a):
                z[k - 1] = z[k] - back[k] * v
            ys[t] = v
        state[g, i] = z[:order]
    restore_subnormals(mode)
