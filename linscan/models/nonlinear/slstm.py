"""sLSTM, the layer of xLSTM whose gates see its output: nonlinear in its state, and so one step after the other.

    a = silu(conv₄ u),  (ĩ, f̃) = blocks of a,  (z̃, õ) = blocks of u,  each + R h[t-1] + b
    c[t] = σ(f̃) c[t-1] + e^ĩ tanh(z̃),  n[t] = σ(f̃) n[t-1] + e^ĩ,  h = σ(õ) c / n,  y = norm(h)

by `linscan.rnn_scan`, which keeps ``c / n`` and ``log n`` and needs no stabiliser. Blocks, R and norm are a head's own.

M. Beck et al., "xLSTM: extended long short-term memory", 2024, arXiv:2405.04517. Paper and published code agree but for
names (the code's method mixes up those of i and f, which start alike); the code's start is followed: R = 0, and forget
biases spread by a power law, here that of the first block. Its norm has scales of 1 + w, here w.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import rnn_scan_vjp
from linscan._arrays import Array, cotangent, namespace, sum_rows
from linscan.models.attention.heads import channels, heads
from linscan.models.block_diagonal import block_diagonal_vjp
from linscan.models.initial import uniform_fan
from linscan.models.layer import Layer, Params, Pullback, State, Training, typed
from linscan.models.recurrence import filter_vjp
from linscan.ops.activation import activation_vjp
from linscan.ops.norm import layer_norm_vjp

_TAPS = 4


@dataclass(frozen=True)
class SLSTM(Layer):
    """An sLSTM layer.

    Parameters
    ----------
    channels : int
        D.
    heads : int, default 4
        H; they divide D, and do not see each other's outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import SLSTM
    >>> layer = SLSTM(channels=8, heads=2)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 8), np.float32), 0)
    >>> y.shape, state["conv"].shape, state["s"].shape
    ((2, 100, 8), (2, 3, 8), (2, 2, 3, 4))
    """

    channels: int
    heads: int = 4

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``conv``, ``W_if`` and ``W_zo`` (H, d, 2 d), ``R`` (H, 4, d, d), ``b`` (H, 4, d) and ``scale`` (D,)."""
        D, H = self.channels, self.heads
        d = D // H
        if D % H:
            raise ValueError(f"SLSTM: heads must divide the channels, {D}; got {H}")
        b = np.zeros((H, 4, d))
        b[:, 1] = 5 - 12 * np.linspace(0, 1, d) ** 0.3
        params = {
            "conv": {"w": uniform_fan(rng, (D, _TAPS), _TAPS), "b": uniform_fan(rng, (D,), _TAPS)},
            "W_if": rng.standard_normal((H, d, 2 * d)) * np.sqrt(2 / (5 * D)),
            "W_zo": rng.standard_normal((H, d, 2 * d)) * np.sqrt(2 / (5 * D)),
            "R": np.zeros((H, 4, d, d)),
            "b": b,
            "scale": np.ones(D),
        }
        return typed(params, dtype)

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; the state is ``{"conv": (…, 3, D), "s": (…, H, 3, d)}``, s that of `linscan.rnn_scan`."""
        xp, H, D = namespace(u), self.heads, self.channels
        marks = None if reset is None else xp.asarray(reset)
        beside = None if marks is None else marks[..., None, :]
        before = state if isinstance(state, dict) else None
        c, back1 = filter_vjp(u, params["conv"], before["conv"] if before else state, marks)
        a, back2 = activation_vjp(c[0], "silu")
        (x, back_x), (z, back_z) = (block_diagonal_vjp(s, params[n]) for s, n in ((a, "W_if"), (u, "W_zo")))
        gates = xp.concatenate([heads(x, H), heads(z, H)], -1)  # (…, H, T, 4 d)
        gates = gates.reshape(*gates.shape[:-1], 4, D // H)
        given = gates, params["R"], params["b"], None, before["s"] if before else None
        back3: Any
        (h, s), back3 = rnn_scan_vjp("slstm", *given, reset=beside)
        normal, back4 = layer_norm_vjp(h)
        n = channels(normal)
        y = params["scale"] * n

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            after = dstate or {"conv": None, "s": None}
            dy = cotangent("SLSTM", "dy", dy, y)
            dh, _, _ = back4(heads(dy * params["scale"], H))
            dgates, dR, db, _, ds = back3(dh, after["s"])
            dgates = dgates.reshape(*dgates.shape[:-2], -1)
            half = dgates.shape[-1] // 2
            (da, dW_if, _), (du, dW_zo, _) = back_x(channels(dgates[..., :half])), back_z(channels(dgates[..., half:]))
            du_conv, dw, dbias, dconv = back1(back2(da), after["conv"])
            grads = {"conv": {"w": dw, "b": dbias}, "W_if": dW_if, "W_zo": dW_zo, "R": dR, "b": db}
            grads["scale"] = sum_rows(dy * n)
            return grads, du + du_conv, {"conv": dconv, "s": ds} if before else None

        return (y, None if state is None else {"conv": c[1], "s": s}), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        y, state = self.apply(params, u[..., None, :], state)
        return y[..., 0, :], state
