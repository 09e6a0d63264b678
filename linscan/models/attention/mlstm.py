"""mLSTM, the layer of xLSTM with a matrix memory, between a short filter and a gate.

    (x, z) = W_up u,  a = silu(conv₄ x),  q, k = blocks of a,  v = blocks of x,  ĩ, f̃ = W (q, k, v) + b
    y = W_down ((norm(h) + s a) silu(z)),   h of `linscan.models.attention.mlstm_cell`, normalised head by head

M. Beck et al., "xLSTM: extended long short-term memory", 2024, arXiv:2405.04517; with ``gate="sigmoid"`` mLSTMsig of
M. Beck et al., "Tiled flash linear attention", 2025, arXiv:2503.14376. The paper's equation holds exactly: published
code adds 1e-6 to the normaliser, and its kernels' gradients leave the normaliser's share out. The code's start is
followed; its norm has scales of 1 + w, here w.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan._arrays import Array, check_choice, cotangent, namespace, sum_rows
from linscan.models.attention.heads import channels, heads
from linscan.models.attention.mlstm_cell import exponential_vjp, sigmoid_vjp
from linscan.models.block_diagonal import block_diagonal_vjp
from linscan.models.initial import uniform_fan
from linscan.models.layer import Layer, Params, Pullback, State, Training, affine, typed
from linscan.models.recurrence import filter_vjp
from linscan.ops.activation import activation_vjp
from linscan.ops.dense import dense_vjp
from linscan.ops.norm import layer_norm_vjp

_TAPS = 4


@dataclass(frozen=True)
class MLSTM(Layer):
    """An mLSTM layer.

    Parameters
    ----------
    channels : int
        D.
    heads : int, default 4
        H.
    gate : {"exp", "sigmoid"}
        Of the input.
    expand : int, default 2
        E = expand D channels inside.
    block : int, default 4
        Channels that the products to q, k and v mix.
    depth : int, default 1
        Layers of the network: what they add to the stream starts that many times smaller.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import MLSTM
    >>> layer = MLSTM(channels=8, heads=2)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 8), np.float32), 0)
    >>> y.shape, state["conv"].shape, state["C"].shape, state["m"].shape
    ((2, 100, 8), (2, 3, 16), (2, 2, 8, 9), (2, 2))
    """

    channels: int
    heads: int = 4
    gate: str = "exp"
    expand: int = 2
    block: int = 4
    depth: int = 1

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``W_up``, ``conv``, ``W_q``, ``W_k``, ``W_v``, ``gates`` (i, f), ``scale``, ``skip`` and ``W_down``."""
        check_choice("MLSTM", "gate", self.gate, ("exp", "sigmoid"))
        D, H, E, b = self.channels, self.heads, self.expand * self.channels, self.block
        if E % H or E % b:
            raise ValueError(f"MLSTM: heads and block must divide {E} channels; got {H} and {b}")
        small = np.sqrt(2 / (5 * D))
        params = {
            "W_up": small * rng.standard_normal((D, 2 * E)),
            "conv": {"w": uniform_fan(rng, (E, _TAPS), _TAPS), "b": uniform_fan(rng, (E,), _TAPS)},
            **{name: small * rng.standard_normal((E // b, b, b)) for name in ("W_q", "W_k", "W_v")},
            "gates": {
                "w": np.zeros((3 * E, 2 * H)),
                "b": np.concatenate([0.1 * rng.standard_normal(H), np.linspace(3, 6, H)]),
            },
            "scale": np.ones(E),
            "skip": np.ones(E),
            "W_down": 2 / (self.depth * np.sqrt(D)) * rng.standard_normal((E, D)),
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
        """See `Layer`; the state is ``{"conv": (…, 3, E), "C": (…, H, K, V + 1), "m": (…, H)}``, no m with sigmoid."""
        xp, H, E, scale, skip = namespace(u), self.heads, self.expand * self.channels, params["scale"], params["skip"]
        marks = None if reset is None else xp.asarray(reset)
        beside = None if marks is None else marks[..., None, :]
        before = state if isinstance(state, dict) else None
        p, back1 = dense_vjp(u, params["W_up"])
        x, z = p[..., :E], p[..., E:]
        (r, conv), back2 = filter_vjp(x, params["conv"], before["conv"] if before else state, marks)
        a, back3 = activation_vjp(r, "silu")
        (q, back_q), (k, back_k), (v, back_v) = (
            block_diagonal_vjp(s, params[name]) for s, name in ((a, "W_q"), (a, "W_k"), (x, "W_v"))
        )
        gates, back4 = dense_vjp(xp.concatenate([q, k, v], -1), *affine(params["gates"]))
        i, f = gates[..., :H].swapaxes(-1, -2), gates[..., H:].swapaxes(-1, -2)
        cell: Any = exponential_vjp if self.gate == "exp" else sigmoid_vjp
        (h, memory), back5 = cell(*(heads(s, H) for s in (q, k, v)), i, f, before, beside)
        normal, back6 = layer_norm_vjp(h)
        n, (s, back7) = channels(normal), activation_vjp(z, "silu")
        inner = scale * n + skip * a
        y, back8 = dense_vjp(inner * s, params["W_down"])

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            dgated, dW_down, _ = back8(cotangent("MLSTM", "dy", dy, y))
            dinner, dz = dgated * s, back7(dgated * inner)
            dh, _, _ = back6(heads(dinner * scale, H))
            *dqkv, di, df, dmemory = back5(dh, dstate)
            dqkv4, *dgates = back4(xp.concatenate([di, df], -2).swapaxes(-1, -2))
            dq, dk, dv = (channels(d) + dqkv4[..., j * E : (j + 1) * E] for j, d in enumerate(dqkv))
            (da_q, dW_q, _), (da_k, dW_k, _), (dx_v, dW_v, _) = back_q(dq), back_k(dk), back_v(dv)
            dx, dw, db, dconv = back2(back3(dinner * skip + da_q + da_k), dstate["conv"] if dstate else None)
            du, dW_up, _ = back1(xp.concatenate([dx + dx_v, dz], -1))
            grads = {"W_up": dW_up, "conv": {"w": dw, "b": db}, "W_q": dW_q, "W_k": dW_k, "W_v": dW_v}
            grads |= {"gates": dict(zip("wb", dgates, strict=True)), "W_down": dW_down}
            grads |= {"scale": sum_rows(dinner * n), "skip": sum_rows(dinner * a)}
            return {name: grads[name] for name in params}, du, {"conv": dconv, **dmemory} if before else None

        return (y, None if state is None else {"conv": conv, **memory}), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        y, state = self.apply(params, u[..., None, :], state)
        return y[..., 0, :], state
