"""Plain float64 and complex128 loops: what every engine is compared with. Nothing here imports linscan."""

from fractions import Fraction
from math import factorial

import numpy as np


def wide(x: object) -> np.ndarray:
    """`x` in float64 or complex128."""
    x = np.asarray(x)
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


# scan


def scan(a, b, h0=None, axis=-1, reverse=False, reset=None):
    """h[t] = a[t] h[t-1] + b[t], element by element."""
    a, b = np.broadcast_arrays(wide(a), wide(b))
    a, b = np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0)
    shape = b.shape
    reset = None if reset is None else np.moveaxis(np.broadcast_to(reset, np.moveaxis(b, 0, axis).shape), axis, 0)
    h0 = np.zeros(shape[1:]) if h0 is None else np.broadcast_to(wide(h0), shape[1:])
    h = np.empty(shape, np.result_type(a, b, h0))
    for index in np.ndindex(shape[1:]):
        state = h0[index]
        for t in reversed(range(shape[0])) if reverse else range(shape[0]):
            at = (t, *index)
            state = b[at] if reset is not None and reset[at] else a[at] * state + b[at]
            h[at] = state
    return np.moveaxis(h, 0, axis)


# block_scan


def block_scan(A, b, h0=None, reverse=False, reset=None):
    """h[t] = A[t] h[t-1] + b[t], row by row: A (..., T or 1, n, n), b (..., T, n), reset (..., T)."""
    A, b = wide(A), wide(b)
    shape = np.broadcast_shapes(A.shape[:-2], b.shape[:-1])
    A, b = np.broadcast_to(A, (*shape, *A.shape[-2:])), np.broadcast_to(b, (*shape, b.shape[-1]))
    reset = np.broadcast_to(False if reset is None else reset, shape)
    h0 = np.broadcast_to(0.0 if h0 is None else wide(h0), (*shape[:-1], b.shape[-1]))
    h = np.zeros(b.shape, np.result_type(A, b, h0))
    for row in np.ndindex(shape[:-1]):
        state = h0[row]
        for t in reversed(range(shape[-1])) if reverse else range(shape[-1]):
            at = (*row, t)
            state = b[at] if reset[at] else A[at] @ state + b[at]
            h[at] = state
    return h


# lse_scan, max_scan, softmax_average


def semiring_scan(join, a, b, h0=None, axis=-1, reverse=False, reset=None):
    """h[t] = join(a[t] + h[t-1], b[t]) from minus infinity, element by element."""
    a, b = np.broadcast_arrays(wide(a), wide(b))
    reset = np.moveaxis(np.broadcast_to(False if reset is None else reset, b.shape), axis, 0)
    a, b = np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0)
    h0 = np.broadcast_to(-np.inf if h0 is None else wide(h0), b.shape[1:])
    h = np.empty(b.shape)
    for index in np.ndindex(b.shape[1:]):
        state = h0[index]
        for t in reversed(range(len(b))) if reverse else range(len(b)):
            at = (t, *index)
            state = b[at] if reset[at] else join(a[at] + state, b[at])
            h[at] = state
    return np.moveaxis(h, 0, axis)


def softmax_average(s, v, w, z0=-np.inf, y0=0.0):
    """One row of scores, values and log-decays: the softmax over all earlier steps, and the state as one more."""
    s, v = np.concatenate([[z0], wide(s)]), np.concatenate([[y0], wide(v)])
    w, y, z = np.concatenate([[0.0], wide(w)]), [], []
    for t in range(1, len(s)):
        scores = np.array([s[r] + w[r + 1 : t + 1].sum() for r in range(t + 1)])
        there = scores > -np.inf
        top = scores.max() if there.any() else 0.0
        e = np.exp(scores[there] - top)
        y.append(e @ v[: t + 1][there] / e.sum() if there.any() else 0.0)
        z.append(top + np.log(e.sum()) if there.any() else -np.inf)
    return np.array(y), np.array(z)


# discretize, hippo


def phi_exact(k, z, order=0):
    """The derivative of this order of phi_k(z) = sum of z^n / (n + k)!, in rational arithmetic, rounded once."""
    re, im = Fraction(float(np.real(z))), Fraction(float(np.imag(z)))
    power_re, power_im, total_re, total_im = Fraction(1), Fraction(0), Fraction(0), Fraction(0)
    for n in range(40 + 3 * int(abs(z))):
        weight = Fraction(factorial(n + order), factorial(n) * factorial(n + order + k))
        total_re, total_im = total_re + weight * power_re, total_im + weight * power_im
        power_re, power_im = power_re * re - power_im * im, power_re * im + power_im * re
    value = complex(float(total_re), float(total_im))
    return value if np.iscomplexobj(z) else value.real


def ode_step(A, B, x, u0, u1, dt, steps=400):
    """x(dt) of x' = A x + B u where u runs straight from u0 to u1, by classical Runge-Kutta steps."""
    h = dt / steps

    def slope(s, x):
        return A @ x + B @ (u0 + (u1 - u0) * s)

    for i in range(steps):
        s = i / steps
        k1 = slope(s, x)
        k2 = slope(s + 0.5 / steps, x + h / 2 * k1)
        k3 = slope(s + 0.5 / steps, x + h / 2 * k2)
        k4 = slope(s + 1 / steps, x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def legendre(n, x):
    """The Legendre polynomials P_0 … P_{n-1} at x, by their recurrence; the last axis is the degree."""
    values = [np.ones_like(x), x]
    for k in range(1, n):
        values.append(((2 * k + 1) * x * values[-1] - k * values[-2]) / (k + 1))
    return np.stack(values[:n], axis=-1)


def laguerre(n, x, alpha=0.0):
    """The generalised Laguerre polynomials L_0 … L_{n-1} at x; the last axis is the degree."""
    values = [np.ones_like(x), 1 + alpha - x]
    for k in range(1, n):
        values.append(((2 * k + 1 + alpha - x) * values[-1] - (k + alpha) * values[-2]) / (k + 1))
    return np.stack(values[:n], axis=-1)


# assoc_scan


def fold(op, items):
    """All prefixes of a list under a Python operator on single elements, one after the other."""
    prefixes = []
    for x in items:
        prefixes.append(op(prefixes[-1], x) if prefixes else x)
    return prefixes


# lfilter, sosfilt, allpole, dlsim


def lfilter(b, a, x, zi=None):
    """Direct form I on a 1-D signal; the state is what the past adds to the next outputs. Returns y, zf."""
    b, a, x = wide(b), wide(a), wide(x)
    b, a = b / a[0], a / a[0]
    order = max(len(b), len(a)) - 1
    tail = np.zeros(len(x) + order, np.result_type(b, a, x, *([] if zi is None else [wide(zi)])))
    tail[:order] += 0 if zi is None else wide(zi)
    y = np.empty(len(x), tail.dtype)
    for t in range(len(x)):
        past_in = sum(b[k] * x[t - k] for k in range(len(b)) if t >= k)
        past_out = sum(a[k] * y[t - k] for k in range(1, len(a)) if t >= k)
        y[t] = past_in - past_out + tail[t]
    zf = tail[len(x) :]
    for s in range(order):
        for k in range(s + 1, order + 1):
            t = len(x) + s - k
            if 0 <= t < len(x):
                zf[s] += (b[k] * x[t] if k < len(b) else 0) - (a[k] * y[t] if k < len(a) else 0)
    return y, zf


def allpole(a, x, zi=None):
    """y[t] = x[t] - sum_k a[t, k] y[t-1-k] on one row: a (T, K), zi (K,) newest first."""
    a, x = wide(a), wide(x)
    zi = np.zeros(a.shape[-1]) if zi is None else wide(zi)
    known = [*zi[::-1]]
    for t in range(len(x)):
        known.append(x[t] - sum(a[t, k] * known[-1 - k] for k in range(a.shape[-1])))
    return np.array(known[len(zi) :]).reshape(len(x)), np.array(known[::-1][: len(zi)])


def dlsim(A, B, C, D, u, x0):
    """Outputs and states of x[t+1] = A x[t] + B u[t], y[t] = C x[t] + D u[t] for one row: u (T, m)."""
    A, B, C, D, u, x = (wide(v) for v in (A, B, C, D, u, x0))
    ys, xs = [], []
    for t in range(len(u)):
        xs.append(x)
        ys.append(C @ x + D @ u[t])
        x = A @ x + B @ u[t]
    return np.array(ys).reshape(len(u), C.shape[0]), np.array(xs).reshape(len(u), A.shape[0])


# ssm_kernel


def ssm_kernel(a, c, length):
    """K[l] = sum_n c_n a_n^l by the recurrence h <- a h from h = c, in extended precision where the machine has it."""
    a, h = (x.astype(np.clongdouble) for x in np.broadcast_arrays(wide(a), wide(c)))
    k = np.zeros((*h.shape[:-1], length), np.clongdouble)
    for t in range(length):
        k[..., t] = h.sum(axis=-1)
        h = h * a
    return k.astype(np.complex128)


def ssm_kernel_grads(a, c, g):
    """The gradients of Re sum(conj(g) K), term by term."""
    a, c = np.broadcast_arrays(wide(a), wide(c))
    da, dc = np.zeros(a.shape, complex), np.zeros(a.shape, complex)
    for t in range(g.shape[-1]):
        dc += g[..., t, None] * np.conj(a.astype(complex) ** t)
        if t:
            da += g[..., t, None] * np.conj(c * t * a.astype(complex) ** (t - 1))
    return da, dc


def ssm_kernel_dense(A, B, C, length):
    """K[l] = C A^l B by the recurrence X <- A X from X = B; B and C are matrices."""
    A, X, C = wide(A), wide(B), wide(C)
    lead = np.broadcast_shapes(A.shape[:-2], X.shape[:-2], C.shape[:-2])
    k = np.zeros((*lead, length, C.shape[-2], X.shape[-1]), np.result_type(A, X, C))
    for t in range(length):
        k[..., t, :, :] = C @ X
        X = A @ X
    return k


def dplr_bilinear(Lambda, P, Q, B, C, dt, pairs):
    """A_bar, B_bar and C of one diagonal plus low-rank model, as full matrices; with pairs, the conjugates appended."""
    if pairs:
        Lambda, P, Q, B, C = (np.concatenate((x, np.conj(x)), axis=-1) for x in (Lambda, P, Q, B, C))
    A = np.diag(Lambda) - P.T @ np.conj(Q)
    eye = np.eye(len(A))
    inverse = np.linalg.inv(eye - dt / 2 * A)
    return inverse @ (eye + dt / 2 * A), inverse @ B[:, None] * dt, C[None]


# fft_conv, fft_conv_nd, short_conv


def conv(u, k, mode="causal"):
    """y[t] = sum_j k[j] u[t - j + c] for one row, c the lag 0 of a bidirectional kernel; circular: indices modulo T."""
    u, k = wide(u), wide(k)
    y = np.zeros(len(u), np.result_type(u, k))
    for t in range(len(u)):
        for j in range(len(k)):
            i = t - j + (len(k) // 2 if mode == "bidirectional" else 0)
            i = i % len(u) if mode == "circular" else i
            if 0 <= i < len(u):
                y[t] += k[j] * u[i]
    return y


def conv_rows(u, k, axis=-1, mode="causal"):
    """`conv` of every row along `axis`, the other axes broadcast."""
    u, k = np.moveaxis(wide(u), axis, -1), np.moveaxis(wide(k), axis, -1)
    lead = np.broadcast_shapes(u.shape[:-1], k.shape[:-1])
    y = np.zeros((*lead, u.shape[-1]), np.result_type(u, k))
    u, k = np.broadcast_to(u, (*lead, u.shape[-1])), np.broadcast_to(k, (*lead, k.shape[-1]))
    for at in np.ndindex(lead):
        y[at] = conv(u[at], k[at], mode)
    return np.moveaxis(y, -1, axis)


def conv2(u, k, modes):
    """y[s, t] = sum_ij k[i, j] u[s - i, t - j] for one image, with a mode for each axis."""
    y = np.zeros(u.shape, np.result_type(wide(u), wide(k)))
    for i in range(k.shape[0]):
        rows = np.zeros(k.shape[0])
        rows[i] = 1
        moved = conv_rows(u, rows[:, None], 0, modes[0])  # u shifted to where kernel row i meets it
        y = y + conv_rows(moved, k[i][None], 1, modes[1])
    return y


def short_conv(u, w, bias, state, dilation=1, reverse=False, reset=None):
    """One row of u (T, D) with w (D, K), bias (D,), state ((K - 1) dilation, D) and reset (T,): outputs, new state."""
    u, w, bias, state = (wide(x) for x in (u, w, bias, state))
    length, span = len(u), len(state)
    reset = np.zeros(length, bool) if reset is None else reset
    if reverse:
        y, state = short_conv(u[::-1], w, bias, state[::-1], dilation, False, reset[::-1])
        return y[::-1], state[::-1]
    x = np.concatenate([state, u])
    number = np.concatenate([np.zeros(span, int), np.cumsum(reset)])
    y = np.zeros((length, u.shape[1]), np.result_type(x, w, bias))
    for t in range(length):
        y[t] = bias
        for j in range(w.shape[1]):
            i = span + t - j * dilation
            if number[i] == number[span + t]:
                y[t] += w[:, j] * x[i]
    last = x[length:].copy()
    last[number[length:] != (number[-1] if len(number) else 0)] = 0
    return y, last


# Ordinary layers and losses, one row at a time.


def dense(u, w, b):
    """``y[…, j] = Σ_i u[…, i] w[i, j] + b[j]`` by the sum."""
    u, w, b = wide(u), wide(w), wide(b)
    y = np.zeros((*u.shape[:-1], w.shape[1]), np.complex128)
    for at in np.ndindex(y.shape):
        y[at] = b[at[-1]] + sum(u[at[:-1]][i] * w[i, at[-1]] for i in range(len(w)))
    return y


def normal_rows(x, eps, centred):
    """Every row over its standard deviation, about its mean or about 0."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    for at in np.ndindex(x.shape[:-1]):
        about = x[at] - (sum(x[at]) / len(x[at]) if centred else 0)
        y[at] = about / np.sqrt(sum(about**2) / len(about) + eps)
    return y


def cross_entropy(logits, labels, mask):
    """Mean of ``log Σ_v exp(z[v]) - z[label]`` over the labels that count."""
    logits = np.asarray(logits, np.float64)
    terms = [
        np.log(sum(np.exp(logits[at] - max(logits[at])))) + max(logits[at]) - logits[at][labels[at]]
        for at in np.ndindex(labels.shape)
        if mask[at]
    ]
    return sum(terms) / max(1, len(terms))


# local_attention, grid_scan


def local_attention(q, k, v, window, g=None, causal=True, scale=None, mask=None, reset=None):
    """One row, query by query: a softmax over the keys of its window that are of its sequence and not masked."""
    q, k, v = wide(q), wide(k), wide(v)
    length = len(q)
    g = np.zeros(length) if g is None else wide(g)
    mask = np.ones(length, bool) if mask is None else mask
    number = np.zeros(length, int) if reset is None else np.cumsum(reset)
    scale = q.shape[1] ** -0.5 if scale is None else scale
    o = np.zeros((length, v.shape[1]))
    for t in range(length):
        seen, scores = [], []
        for s in range(max(0, t - window + 1), t + 1 if causal else min(length, t + window)):
            if mask[s] and number[s] == number[t]:
                seen.append(s)
                scores.append(scale * (q[t] @ k[s]) + g[min(s, t) + 1 : max(s, t) + 1].sum())
        if seen and max(scores) > -np.inf:
            weights = np.exp(np.array(scores) - max(scores))
            o[t] = weights @ v[seen] / weights.sum()
    return o


# rnn_scan


def _logistic(x):
    return 1 / (1 + np.exp(-x))


def _cell_step(cell, g, y, s, w):
    """The states after one step: `g` is x + y, one row per gate; `y` is R h + b."""
    x = g - y
    if cell == "elman":
        return [np.tanh(g[0])]
    if cell == "leaky":
        return [(1 - w[0]) * s[0] + w[0] * np.tanh(g[0])]
    if cell == "almost_linear":
        return [w[0] * s[0] + g[0]]
    if cell in ("gru", "para_gru"):
        r, z = _logistic(g[0]), _logistic(g[1])
        n = np.tanh(x[2] + r * y[2])
        return [z * s[0] + (1 - z) * n if cell == "gru" else z * n + (1 - z) * s[0]]
    if cell == "para_lstm":
        f = _logistic(g[0] + w[0] * s[1])
        c = f * s[1] + (1 - f) * np.tanh(g[1])
        return [_logistic(g[2] + w[1] * c) * np.tanh(c), c]
    if cell == "slstm":  # the published form: numerator and denominator, here from r = c / n and l = log n
        n = np.exp(s[2])
        numerator = _logistic(g[1]) * s[1] * n + np.exp(g[0]) * np.tanh(g[2])
        denominator = _logistic(g[1]) * n + np.exp(g[0])
        return [_logistic(g[3]) * numerator / denominator, numerator / denominator, np.log(denominator)]
    w = np.zeros((3, len(s[0]))) if cell == "lstm" else w
    c = _logistic(g[1] + w[1] * s[1]) * s[1] + _logistic(g[0] + w[0] * s[1]) * np.tanh(g[2])
    return [_logistic(g[3] + w[2] * c) * np.tanh(c), c]


def rnn(cell, x, R, b=None, w=None, h0=None, reverse=False, reset=None, relu=None, diagonal=False):
    """Outputs (…, T, d) and final states (…, S, d) of a named cell, row by row."""
    states = {"lstm": 2, "peephole_lstm": 2, "para_lstm": 2, "slstm": 3}.get(cell, 1)
    start = np.array([0, 0, -np.inf][:states])[:, None]
    x, R = wide(x), wide(R)
    (T, G, d), core = x.shape[-3:], 2 if diagonal or cell.startswith("para") else 3
    lead = np.broadcast_shapes(x.shape[:-3], R.shape[: R.ndim - core])
    x, R = np.broadcast_to(x, lead + (T, G, d)), np.broadcast_to(R, lead + R.shape[R.ndim - core :])
    b = np.broadcast_to(0.0 if b is None else wide(b), lead + (G, d))
    w = None if w is None else np.broadcast_to(wide(w), lead + np.shape(w)[-2:])
    h0 = np.broadcast_to(start if h0 is None else wide(h0), lead + (states, d))
    reset = np.broadcast_to(False if reset is None else reset, lead + (T,))
    first = 0 if relu is None else d - relu
    h, last = np.empty(lead + (T, d)), np.empty(lead + (states, d))
    for row in np.ndindex(lead):
        s = h0[row]
        for t in reversed(range(T)) if reverse else range(T):
            s = np.broadcast_to(start, s.shape) if reset[row][t] else s
            u = s[0].copy()
            if cell == "almost_linear":
                u[first:] *= u[first:] > 0
            y = (R[row] * u if core == 2 else R[row] @ u) + b[row]
            s = np.array(_cell_step(cell, x[row][t] + y, y, s, None if w is None else w[row]))
            h[row][t] = s[0]
        last[row] = s
    return h, last


# linear_attention


def linear_attention(q, k, v, g=None, S0=None, scale=1, reverse=False, reset=None, sign=None):
    """S[t] = diag(sign e^g[t]) S[t-1] + k[t] v[t]^T and o[t] = scale S[t]^T q[t], step by step for every head."""
    q, k, v = wide(q), wide(k), wide(v)
    (length, width), lead = q.shape[-2:], [q.shape[:-2], k.shape[:-2], v.shape[:-2]]
    decay = np.ones((length, 1))
    for x, to in ((g, np.exp), (sign, lambda x: x)):
        if x is not None:
            x = to(wide(x)) if wide(x).ndim == q.ndim else np.asarray(to(wide(x)))[..., None]
            decay = decay * np.broadcast_to(x, np.broadcast_shapes(x.shape, (length, 1)))
    reset = np.zeros(length, bool) if reset is None else np.asarray(reset)
    S0 = np.zeros((width, v.shape[-1])) if S0 is None else wide(S0)
    lead = np.broadcast_shapes(*lead, decay.shape[:-2], reset.shape[:-1], S0.shape[:-2])
    q, k, v, decay, S0 = (np.broadcast_to(x, lead + x.shape[-2:]) for x in (q, k, v, decay, S0))
    reset = np.broadcast_to(reset, (*lead, length))
    S = S0.astype(np.result_type(q, k, v, S0))
    o = np.empty(v.shape, S.dtype)
    for at in np.ndindex(lead):
        for t in reversed(range(length)) if reverse else range(length):
            forgets = (decay[at][t] == 0) | reset[at][t]
            with np.errstate(invalid="ignore", over="ignore"):
                S[at] = np.where(forgets[:, None], 0, decay[at][t][:, None] * S[at]) + np.outer(k[at][t], v[at][t])
                o[at][t] = scale * (S[at].T @ q[at][t])
    return o, S


# selective_scan


def selective_scan(
    u, dt, A, B, C, D=None, z=None, dt_bias=None, h0=None, dt_softplus=False, reverse=False, reset=None, real=True
):
    """One row, step by step and state by state: u, dt, z (T, D), A (D, N), B, C (T, G, N). Returns y, all states."""
    u, dt, A, B, C = (wide(x) for x in (u, dt, A, B, C))
    length, channels = u.shape
    states, groups = A.shape[1], B.shape[1]
    h = np.zeros((channels, states)) if h0 is None else wide(h0)
    kind = np.result_type(u, A, B, C, h, 0.0 if D is None else wide(D))
    y, every = np.zeros(u.shape, kind), np.zeros((length, channels, states), kind)
    h = h.astype(kind)
    for t in reversed(range(length)) if reverse else range(length):
        if reset is not None and reset[t]:
            h[:] = 0
        for d in range(channels):
            step = dt[t, d] + (0 if dt_bias is None else wide(dt_bias)[d])
            if dt_softplus:
                step = np.log1p(np.exp(-abs(step))) + max(step, 0)
            g = d // (channels // groups)
            for n in range(states):
                h[d, n] = np.exp(step * A[d, n]) * h[d, n] + step * u[t, d] * B[t, g, n]
                y[t, d] += C[t, g, n] * h[d, n]
            y[t, d] += 0 if D is None else wide(D)[d] * u[t, d]
        every[t] = h
    y = y.real if real else y
    return y if z is None else y * wide(z) / (1 + np.exp(-wide(z))), every


# dplr_attention, delta_rule


def dplr_attention(q, k, v, a, b, g=None, S0=None, scale=1, reverse=False, reset=None):
    """S[t] = diag(e^g[t]) S[t-1] + b[t] (a[t]^T S[t-1]) + k[t] v[t]^T, o[t] = scale S[t]^T q[t], step by step."""
    q, k, v, a, b = map(wide, (q, k, v, a, b))
    length, key, value = q.shape[-2], q.shape[-1], v.shape[-1]
    g = np.zeros(length) if g is None else np.asarray(g, np.float64)
    g = g if g.ndim == q.ndim else np.broadcast_to(g, (*g.shape[:-1], length))[..., None]
    reset = np.zeros(length, bool) if reset is None else np.asarray(reset)
    S = np.zeros((key, value)) if S0 is None else wide(S0)
    shapes = [x.shape[:-2] for x in (q, k, v, a, b, g, S)]
    lead = np.broadcast_shapes(*shapes, reset.shape[:-1])
    S, o = np.broadcast_to(S, (*lead, key, value)), np.zeros((*lead, length, value), np.result_type(q, k, v, a, b, S))
    for t in range(length)[:: -1 if reverse else 1]:
        S = np.where(reset[..., t, None, None], 0, S)
        read = np.einsum("...k,...kv->...v", a[..., t, :], S)
        S = np.where(np.isneginf(g[..., t, :, None]), 0, np.exp(g[..., t, :, None]) * S)
        S = S + b[..., t, :, None] * read[..., None, :] + k[..., t, :, None] * v[..., t, None, :]
        o[..., t, :] = scale * np.einsum("...k,...kv->...v", q[..., t, :], S)
    return o, S


def delta_rule(q, k, v, beta, g=None, S0=None, w=None, n_householder=1, scale=1, reverse=False, reset=None):
    """For every token: decay, then n_householder times replace beta of what lies under a key, then read."""
    q, k, v, beta = map(wide, (q, k, v, beta))
    length, n, key, value = q.shape[-2], n_householder, q.shape[-1], v.shape[-1]
    beta = np.broadcast_to(beta, (*beta.shape[:-1], length * n))
    g = np.zeros(length) if g is None else np.asarray(g, np.float64)
    g = g if g.ndim == q.ndim else np.broadcast_to(g, (*g.shape[:-1], length))[..., None]
    reset = np.zeros(length, bool) if reset is None else np.asarray(reset)
    S = np.zeros((key, value)) if S0 is None else wide(S0)
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v, g, S)), beta.shape[:-1], reset.shape[:-1])
    S, o = np.broadcast_to(S, (*lead, key, value)), np.zeros((*lead, length, value), np.result_type(q, k, v, beta, S))
    for t in range(length)[:: -1 if reverse else 1]:
        S = np.where(reset[..., t, None, None], 0, S)
        stays = np.where(np.isneginf(g[..., t, :, None]), 0, np.exp(g[..., t, :, None]) * S)
        for i in range(t * n, t * n + n):
            old = np.einsum("...k,...kv->...v", k[..., i, :], stays if w is None else S)
            along = k if w is None else wide(w)
            S = stays + beta[..., i, None, None] * along[..., i, :, None] * (v[..., i, :] - old)[..., None, :]
            stays = S
        o[..., t, :] = scale * np.einsum("...k,...kv->...v", q[..., t, :], S)
    return o, S


def grid_scan(q, k, v, transition, source, mark, direct=None, r0=None, d0=None):
    """One grid, cell by cell, with matrix states on its edges: outputs and the states that leave."""
    q, k, v, transition, source, mark = (wide(x) for x in (q, k, v, transition, source, mark))
    width, height = q.shape[:2]
    state = (q.shape[2], v.shape[2])
    direct = np.zeros((width, height)) if direct is None else wide(direct)
    r = np.zeros((height, *state)) if r0 is None else wide(r0)
    d = np.zeros((width, *state)) if d0 is None else wide(d0)
    kind = np.result_type(q, k, v, transition, source, mark, direct, r, d)
    r, d, o = r.astype(kind), d.astype(kind), np.zeros((width, height, state[1]), kind)
    for x in range(width):
        for y in range(height):
            left, up, pair = r[y].copy(), d[x].copy(), np.outer(k[x, y], v[x, y])
            read = mark[x, y, 0] * left + mark[x, y, 1] * up
            o[x, y] = q[x, y] @ read + direct[x, y] * (q[x, y] @ k[x, y]) * v[x, y]
            gates, enters = transition[x, y], source[x, y]
            r[y] = gates[0, 0] * left + gates[0, 1] * up + enters[0] * pair
            d[x] = gates[1, 0] * left + gates[1, 1] * up + enters[1] * pair
    return o, r, d
