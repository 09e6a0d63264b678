"""One step of each shipped cell on the CPU, for one row: see `linscan.ops.gated_cells`.

Arrays of a row: ``x, y (G, d)``, states ``s (S, d)``, weights ``w (W, d)``. A step has two phases of sums and
activations and a last line; `a` is scratch for the activations, which are what the pullbacks need. Of the arguments
`gru`, `lstm` and `slstm` at most one is not None: the compiler drops the other families' code before it looks at it.
"""

import numpy as np

from linscan.engines.cpu.jit import jit
from linscan.engines.cpu.rnn_math import log1pexp, sigmoid, tanh

SIMPLE, GRU, LSTM, SLSTM = (None, None, None), ((), None, None), (None, (), None), (None, None, ())
SCRATCH, KEPT = 6, 5  # rows of `a`, and those the pullbacks need

# Of each phase: which rows of `a` go through log(1 + e^-|x|), the logistic function and tanh.
_PHASES = {
    "linear": ((0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0)),
    "tanh": ((0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 0)),
    "gru": ((0, 0, 0, 2, 0, 0), (0, 0, 0, 0, 2, 3)),
    "lstm": ((0, 0, 0, 2, 2, 3), (0, 0, 3, 4, 4, 5)),
    "cifg": ((0, 0, 0, 1, 1, 2), (0, 0, 2, 3, 3, 4)),
    "slstm": ((4, 5, 0, 0, 0, 0), (5, 6, 0, 3, 3, 4)),
}
_CELLS = {  # family, variant within it, phases
    "elman": (SIMPLE, 0, "tanh"),
    "leaky": (SIMPLE, 1, "tanh"),
    "almost_linear": (SIMPLE, 2, "linear"),
    "gru": (GRU, 0, "gru"),
    "para_gru": (GRU, 1, "gru"),
    "lstm": (LSTM, 0, "lstm"),
    "peephole_lstm": (LSTM, 1, "lstm"),
    "para_lstm": (LSTM, 2, "cifg"),
    "slstm": (SLSTM, 0, "slstm"),
}
KINDS = {name: (*family, (variant, np.array(_PHASES[plan]))) for name, (family, variant, plan) in _CELLS.items()}


@jit
def step(gru, lstm, slstm, kind, x, y, s, w, a, new, c):
    """The states after the step, into `new`, and the activations, into `a`."""
    variant, phases = kind
    one = c[1][-1]
    d, flat = s.shape[1], a.reshape(-1)
    for phase in range(2):
        if gru is not None:
            _gru(variant, phase, x, y, a)
        elif lstm is not None:
            _lstm(variant, phase, x, y, s, w, a, new, one)
        elif slstm is not None:
            _slstm(phase, x, y, s, a, new)
        elif phase == 0:
            for i in range(d):
                a[0, i] = x[0, i] + y[0, i]
        plan = phases[phase]
        if slstm is not None:
            log1pexp(flat[plan[0] * d : plan[1] * d], c)
        if gru is not None or lstm is not None or slstm is not None:
            sigmoid(flat[plan[2] * d : plan[3] * d], c)
        tanh(flat[plan[4] * d : plan[5] * d], c)
    if gru is not None:
        for i in range(d):
            new[0, i] = a[1, i] * s[0, i] + (one - a[1, i]) * a[2, i]
    elif lstm is not None:
        o, t = (a[2], a[3]) if variant == 2 else (a[3], a[4])
        for i in range(d):
            new[0, i] = o[i] * t[i]
    elif slstm is not None:
        for i in range(d):
            new[2, i] += a[5, i]
            new[1, i] = s[1, i] + a[0, i] * (a[3, i] - s[1, i])
            new[0, i] = a[2, i] * new[1, i]
    else:
        for i in range(d):
            rate = w[0, i] if variant else one
            new[0, i] = (rate if variant == 2 else one - rate) * s[0, i] + (one if variant == 2 else rate) * a[0, i]


@jit
def _gru(variant, phase, x, y, a):
    """Rows of `a`: r, the share of the state that is kept, n and y_n."""
    if phase == 0:
        for i in range(a.shape[1]):
            z = x[1, i] + y[1, i]
            a[0, i] = x[0, i] + y[0, i]
            a[1, i] = -z if variant else z
    else:
        for i in range(a.shape[1]):
            a[2, i] = x[2, i] + a[0, i] * y[2, i]
            a[3, i] = y[2, i]


@jit
def _lstm(variant, phase, x, y, s, w, a, new, one):
    """Rows of `a`: i, f, z, o and tanh(c'); of a ParaLSTM f, z, o and tanh(c')."""
    gates = 1 if variant == 2 else 2  # before z
    if phase == 0:
        flat, inputs, fed = a.reshape(-1), x.reshape(-1), y.reshape(-1)
        for i in range(len(inputs)):
            flat[i] = inputs[i] + fed[i]
        if variant:
            for k in range(gates):
                for i in range(a.shape[1]):
                    a[k, i] += w[k, i] * s[1, i]
    else:
        entry, forget, z, o, t = a[0], a[gates - 1], a[gates], a[gates + 1], a[gates + 2]
        for i in range(a.shape[1]):
            share = one - forget[i] if variant == 2 else entry[i]
            t[i] = forget[i] * s[1, i] + share * z[i]
        for i in range(a.shape[1]):
            new[1, i] = t[i]
            if variant:
                o[i] += w[gates, i] * t[i]


@jit
def _slstm(phase, x, y, s, a, new):
    """Rows of `a`: p (the new input's share of the mean), σ(-f), o, z; then two logarithms."""
    if phase == 0:
        for i in range(a.shape[1]):
            a[0, i], a[3, i] = x[0, i] + y[0, i], x[2, i] + y[2, i]
            a[1, i], a[2, i] = -(x[1, i] + y[1, i]), x[3, i] + y[3, i]
            a[4, i] = a[1, i]
    else:
        for i in range(a.shape[1]):
            kept = s[2, i] - (max(a[1, i], a[1, i] - a[1, i]) + a[4, i])  # l + log σ(f)
            new[2, i] = max(kept, a[0, i])
            a[0, i] -= kept
            a[5, i] = a[0, i]
