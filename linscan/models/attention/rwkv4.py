"""RWKV-4: an average of the past with weights that decay, in every channel, and a gated network beside it.

Both layers see every input mixed with the one before it, ``m(u, μ) = μ u[t] + (1 - μ) u[t-1]``. The time mix:

    k, v, r = W_k m(u, μ_k), W_v m(u, μ_v), W_r m(u, μ_r),  y = W_o (σ(r) wkv(k, v))

with `linscan.models.attention.wkv`. The channel mix: ``y = σ(W_r m(u, μ_r)) W_v relu(W_k m(u, μ_k))²``.

B. Peng et al., "RWKV: reinventing RNNs for the transformer era", 2023, arXiv:2305.13048. Decays, first weights, mixes
and the matrices that start at zero are those of the published code; the others start uniform within 1 / sqrt(inputs),
not orthogonal. In a network, blocks of `RWKV4` and of `ChannelMix` take turns, with neither activation nor gate.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan._arrays import Array, cotangent, namespace
from linscan.models.attention.wkv import mixed_vjp, wkv_vjp
from linscan.models.initial import uniform_fan
from linscan.models.layer import Layer, Params, Pullback, State, Training, typed
from linscan.ops.activation import activation_vjp
from linscan.ops.dense import dense_vjp


@dataclass(frozen=True)
class RWKV4(Layer):
    """RWKV-4's time mix.

    Parameters
    ----------
    channels : int
        D.
    depth : float, default 0
        Where the layer will stand, from 0 for the first to 1 for the last: it starts accordingly.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import RWKV4
    >>> layer = RWKV4(channels=4)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 4), np.float32), 0)
    >>> y.shape, state["u"].shape, state["average"].shape, state["log_sum"].shape
    ((2, 100, 4), (2, 1, 4), (2, 4), (2, 4))
    """

    channels: int
    depth: float = 0.0

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``time_decay``, ``time_first``, ``mix_k``, ``mix_v``, ``mix_r`` (D,), ``W_k``, ``W_v``, ``W_r``, ``W_o``."""
        D, late = self.channels, self.depth
        part, spread = np.arange(D) / D, np.arange(D) / max(1, D - 1)
        params = {
            "time_decay": -5 + 8 * spread ** (0.7 + 1.3 * late),
            "time_first": np.log(0.3) + 0.5 * ((np.arange(D) + 1) % 3 - 1),
            "mix_k": part ** (1 - late),
            "mix_v": part ** (1 - late) + 0.3 * late,
            "mix_r": part ** (0.5 * (1 - late)),
            "W_v": {"w": uniform_fan(rng, (D, D), D)},
            **{name: {"w": np.zeros((D, D))} for name in ("W_k", "W_r", "W_o")},
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
        """See `Layer`; the state is ``{"u": (…, 1, D), "average": (…, D), "log_sum": (…, D)}``."""
        before = state if isinstance(state, dict) else {"u": state, "average": None, "log_sum": None}
        reset = None if reset is None else namespace(u).asarray(reset)
        (m, last), back1 = mixed_vjp(params, "kvr", u, before["u"], reset)
        k, back_k = dense_vjp(m["k"], params["W_k"]["w"])
        v, back_v = dense_vjp(m["v"], params["W_v"]["w"])
        r, back_r = dense_vjp(m["r"], params["W_r"]["w"])
        decay = -namespace(u).exp(params["time_decay"])
        start = before["average"], before["log_sum"]
        marks = None if reset is None else reset[..., None]
        (x, final), back2 = wkv_vjp(k, v, decay, params["time_first"], start, marks)
        s, back3 = activation_vjp(r, "sigmoid")
        y, back4 = dense_vjp(s * x, params["W_o"]["w"])

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            later = dstate or dict.fromkeys(before)
            dg, dW_o, _ = back4(cotangent("RWKV4", "dy", dy, y))
            dk, dv, ddecay, dfirst, dstart = back2(dg * s, (later["average"], later["log_sum"]))
            dm_k, dW_k, _ = back_k(dk)
            dm_v, dW_v, _ = back_v(dv)
            dm_r, dW_r, _ = back_r(back3(dg * x))
            du, dmix, du_before = back1({"k": dm_k, "v": dm_v, "r": dm_r}, later["u"])
            grads = dmix | {"time_decay": ddecay * decay, "time_first": dfirst}
            grads |= {"W_k": {"w": dW_k}, "W_v": {"w": dW_v}, "W_r": {"w": dW_r}, "W_o": {"w": dW_o}}
            old = None
            if isinstance(state, dict):
                old = {"u": du_before, "average": dstart[0], "log_sum": dstart[1]}
            return {name: grads[name] for name in params}, du, old

        return (y, None if state is None else {"u": last, "average": final[0], "log_sum": final[1]}), pullback


@dataclass(frozen=True)
class ChannelMix(Layer):
    """RWKV-4's channel mix; parameters as of `RWKV4`, four times as wide inside as outside."""

    channels: int
    depth: float = 0.0

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``mix_k`` and ``mix_r`` (D,), ``W_k`` (D, 4 D), ``W_v`` and ``W_r``."""
        D = self.channels
        mix = (np.arange(D) / D) ** (1 - self.depth)
        matrices = {"W_k": uniform_fan(rng, (D, 4 * D), D), "W_v": np.zeros((4 * D, D)), "W_r": np.zeros((D, D))}
        return typed({"mix_k": mix, "mix_r": mix, **{name: {"w": w} for name, w in matrices.items()}}, dtype)

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; the state is ``{"u": (…, 1, D)}``."""
        reset = None if reset is None else namespace(u).asarray(reset)
        (m, last), back1 = mixed_vjp(params, "kr", u, state["u"] if isinstance(state, dict) else state, reset)
        k, back_k = dense_vjp(m["k"], params["W_k"]["w"])
        a, back2 = activation_vjp(k, "relu")
        v, back_v = dense_vjp(a * a, params["W_v"]["w"])
        r, back_r = dense_vjp(m["r"], params["W_r"]["w"])
        s, back3 = activation_vjp(r, "sigmoid")
        y = s * v

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            dy = cotangent("ChannelMix", "dy", dy, y)
            da2, dW_v, _ = back_v(dy * s)
            dm_k, dW_k, _ = back_k(back2(2 * a * da2))
            dm_r, dW_r, _ = back_r(back3(dy * v))
            du, dmix, du_before = back1({"k": dm_k, "r": dm_r}, dstate["u"] if dstate else None)
            grads = dmix | {"W_k": {"w": dW_k}, "W_v": {"w": dW_v}, "W_r": {"w": dW_r}}
            return {name: grads[name] for name in params}, du, {"u": du_before} if isinstance(state, dict) else None

        return (y, None if state is None else {"u": last}), pullback
