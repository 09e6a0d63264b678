"""The loops over time of the shipped cells, forwards and backwards, for a few rows that share their matrices.

A company is ``order[edges[e]:edges[e + 1]]``; its rows have one matrix, ``R[which[row]]``. The forward loop writes
as many state rows as `states` has, and the activations the backward loop needs if `acts` has any times.
"""

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.rnn_cells import step
from linscan.engines.cpu.rnn_cells_back import step_back
from linscan.engines.cpu.rnn_product import product


@jit
def forward(
    gru, lstm, slstm, kind, options, R, w, start, reset, which, order, x, b, states, acts, s, edges, scratch, c
):
    """`s` holds the rows' states and is advanced."""
    mode = flush_subnormals()
    reverse, linear, diagonal = options
    u, y, a, new = scratch
    T, G, d = x.shape[1:]
    for e in range(len(edges) - 1):
        rows = order[edges[e] : edges[e + 1]]
        matrix = R[which[rows[0]]]
        for i in range(T):
            t = T - 1 - i if reverse else i
            for k in range(len(rows)):
                state, sums, fed, bias = s[rows[k]], y[k], u[k], b[rows[k]].reshape(-1)
                if reset.shape[1] and reset[rows[k], t]:
                    for n in range(len(start)):
                        for j in range(d):
                            state[n, j] = start[n]
                for j in range(d):
                    fed[j] = state[0, j]
                for j in range(linear, d):
                    fed[j] = 0 if fed[j] < 0 else fed[j]
                for j in range(len(bias)):
                    sums[j] = bias[j]
                if diagonal:
                    weights = matrix[0, 0]
                    for g in range(G):
                        for j in range(d):
                            sums[g * d + j] += weights[g * d + j] * fed[j]
            if not diagonal:
                product(matrix, u, y, len(rows))
            for k in range(len(rows)):
                row = rows[k]
                state = s[row]
                step(gru, lstm, slstm, kind, x[row, t], y[k, : G * d].reshape(G, d), state, w[row], a, new, c)
                for n in range(len(start)):
                    for j in range(d):
                        state[n, j] = new[n, j]
                for n in range(states.shape[2]):
                    for j in range(d):
                        states[row, t, n, j] = new[n, j]
                if acts.shape[1]:
                    for n in range(acts.shape[2]):
                        for j in range(d):
                            acts[row, t, n, j] = a[n, j]
    restore_subnormals(mode)


@jit
def backward(
    gru,
    lstm,
    slstm,
    kind,
    options,
    R,
    w,
    start,
    reset,
    which,
    order,
    s0,
    dh,
    states,
    acts,
    dx,
    dw,
    ds,
    edges,
    scratch,
    c,
):
    """`ds` holds the gradient of the rows' states and is carried to the first."""
    mode = flush_subnormals()
    reverse, linear, diagonal = options
    back, du, before = scratch
    T, G, d = dx.shape[1:]
    for e in range(len(edges) - 1):
        rows = order[edges[e] : edges[e + 1]]
        matrix = R[which[rows[0]]]
        for i in range(T):
            t = i if reverse else T - 1 - i
            for k in range(len(rows)):
                row, grads, sums, out, gates = rows[k], back[k], du[k], ds[rows[k]], dx[rows[k], t].reshape(-1)
                s, a = s0[row] if i + 1 == T else states[row, t + 1 if reverse else t - 1], acts[row, t]
                forgotten = reset.shape[1] > 0 and reset[row, t]
                for n in range(len(start)):
                    for j in range(d):
                        before[k, n, j] = start[n] if forgotten else s[n, j]
                for j in range(d):
                    out[0, j] += dh[row, t, j]
                    sums[j] = 0
                step_back(
                    gru, lstm, slstm, kind, before[k], w[row], a, states[row, t], out, dx[row, t], dw[row], c[1][-1]
                )
                for j in range(len(gates)):
                    grads[j] = gates[j]
                if gru is not None:
                    for j in range(d):
                        grads[2 * d + j] *= a[0, j]
                if diagonal:
                    weights = matrix[0, 0]
                    for g in range(G):
                        for j in range(d):
                            sums[j] += weights[g * d + j] * grads[g * d + j]
            if not diagonal:
                product(matrix, back, du, len(rows))
            for k in range(len(rows)):
                out = ds[rows[k]]
                for j in range(d):
                    if j < linear or before[k, 0, j] > 0:
                        out[0, j] += du[k, j]
                if reset.shape[1] and reset[rows[k], t]:
                    for n in range(len(start)):
                        for j in range(d):
                            out[n, j] = 0
    restore_subnormals(mode)
