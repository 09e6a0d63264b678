"""The pullbacks of the shipped cells' steps on the CPU, for one row, from the activations `rnn_cells.step` leaves."""

from linscan.engines.cpu.jit import jit


@jit
def step_back(gru, lstm, slstm, kind, s, w, a, new, ds, dx, dw, one):
    """Gradients of x (into `dx`), w (added to `dw`) and the states (`ds`, in place)."""
    variant = kind[0]
    if gru is not None:
        _gru(variant, s, a, ds, dx, one)
    elif lstm is not None:
        _lstm(variant, s, w, a, new, ds, dx, dw, one)
    elif slstm is not None:
        _slstm(s, a, new, ds, dx, one)
    else:
        _simple(variant, s, w, a, ds, dx, dw, one)


@jit
def _simple(variant, s, w, a, ds, dx, dw, one):
    for i in range(s.shape[1]):
        g, n = ds[0, i], a[0, i]
        slope = one if variant == 2 else one - n * n
        if variant:
            rate = w[0, i]
            dw[0, i] += (s[0, i] if variant == 2 else n - s[0, i]) * g
            dx[0, i] = slope * g if variant == 2 else slope * rate * g
            ds[0, i] = (rate if variant == 2 else one - rate) * g
        else:
            dx[0, i] = slope * g
            ds[0, i] = 0


@jit
def _gru(variant, s, a, ds, dx, one):
    r, keep, n, fed = a[0], a[1], a[2], a[3]
    for i in range(len(r)):
        g = ds[0, i]
        dn = g * (one - keep[i]) * (one - n[i] * n[i])
        dz = g * (s[0, i] - n[i]) * keep[i] * (one - keep[i])
        dx[0, i] = dn * fed[i] * r[i] * (one - r[i])
        dx[1, i] = -dz if variant else dz
        dx[2, i] = dn
        ds[0, i] = g * keep[i]


@jit
def _lstm(variant, s, w, a, new, ds, dx, dw, one):
    gates = 1 if variant == 2 else 2
    entry, f, z, o, t = a[0], a[gates - 1], a[gates], a[gates + 1], a[gates + 2]
    to_f, to_z, to_o, dc = dx[gates - 1], dx[gates], dx[gates + 1], ds[1]
    for i in range(len(f)):
        to_o[i] = ds[0, i] * t[i] * o[i] * (one - o[i])
        dc[i] += ds[0, i] * o[i] * (one - t[i] * t[i])
        if variant:
            dc[i] += w[gates, i] * to_o[i]
            dw[gates, i] += to_o[i] * new[1, i]
    for i in range(len(f)):
        g, c = dc[i], s[1, i]
        share, apart = (one - f[i], c - z[i]) if variant == 2 else (entry[i], c)
        to_f[i] = g * apart * f[i] * (one - f[i])
        to_z[i] = g * share * (one - z[i] * z[i])
        ds[0, i], dc[i] = 0, g * f[i]
        if variant != 2:
            dx[0, i] = g * z[i] * entry[i] * (one - entry[i])
    if variant:
        for k in range(gates):
            for i in range(len(f)):
                dc[i] += w[k, i] * dx[k, i]
                dw[k, i] += dx[k, i] * s[1, i]


@jit
def _slstm(s, a, new, ds, dx, one):
    p, away, o, z = a[0], a[1], a[2], a[3]
    for i in range(len(p)):
        dr = ds[1, i] + ds[0, i] * o[i]
        di = dr * (z[i] - s[1, i]) * p[i] * (one - p[i]) + ds[2, i] * p[i]
        kept = ds[2, i] - di
        dx[0, i], dx[1, i] = di, kept * away[i]
        dx[2, i] = dr * p[i] * (one - z[i] * z[i])
        dx[3, i] = ds[0, i] * new[1, i] * o[i] * (one - o[i])
        ds[0, i], ds[1, i], ds[2, i] = 0, dr * (one - p[i]), kept
