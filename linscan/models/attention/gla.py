"""GLA: gated linear attention, whose matrix states decay by a vector that comes with the data.

    q, k, v = W_in u,  g = log σ(W_b W_a u + b) / 16,  S[t] = diag(e^g[t]) S[t-1] + k[t] v[t]ᵀ,  o = K^{-½} Sᵀ q
    y = W_out (norm(o) silu(W_g u)),  for every head, W_a to 16 channels

S. Yang et al., "Gated linear attention transformers with hardware-efficient training", 2023, arXiv:2312.06635. The
paper normalises heads by layer norm, its code by root mean squares: the code is followed, also in that W_g has no bias,
and with ``taps`` in the filters and silu before q, k and v. Weights start uniform within 1 / sqrt(inputs), as ordinary
layers do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import linear_attention_vjp
from linscan._arrays import Array, cotangent, namespace
from linscan.models.attention.heads import channels, heads, in_vjp, init_in, init_out, out_vjp, width
from linscan.models.initial import uniform_fan
from linscan.models.layer import Layer, Params, Pullback, State, Training, affine, typed
from linscan.ops.activation import activation_vjp
from linscan.ops.dense import dense_vjp

_RANK, _SLOW = 16, 16.0  # of the gate's matrix; what its logarithm is divided by


@dataclass(frozen=True)
class GLA(Layer):
    """Gated linear attention.

    Parameters
    ----------
    channels : int
        D.
    heads : int, default 4
        H.
    key, value : int, optional
        Width of a head's keys, K, and values, V. None means D / 2H, as published, and D / H.
    taps : int, default 0
        Of a short filter of queries, keys and values; 0 means none.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import GLA
    >>> layer = GLA(channels=8, heads=2)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 8), np.float32), 0)
    >>> y.shape, state["S"].shape
    ((2, 100, 8), (2, 2, 2, 4))
    """

    channels: int
    heads: int = 4
    key: int | None = None
    value: int | None = None
    taps: int = 0

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``W_in``, ``conv`` if there are taps, ``W_a``, ``W_b`` (``w`` and ``b``), ``norm``, ``W_g`` and ``W_out``."""
        D, H = self.channels, self.heads
        key, value = self._widths
        params = init_in(rng, D, 2 * key + value, self.taps) | {
            "W_a": {"w": uniform_fan(rng, (D, _RANK), D)},
            "W_b": {"w": uniform_fan(rng, (_RANK, key), _RANK), "b": uniform_fan(rng, (key,), _RANK)},
        }
        return typed(params | init_out(rng, D, H, value // H, True), dtype)

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; the state is ``{"S": (…, H, K, V)}``, and ``conv`` (…, taps - 1, width of W_in) with taps."""
        xp, H = namespace(u), self.heads
        before = state if isinstance(state, dict) else {"conv": state, "S": None}
        reset = None if reset is None else xp.asarray(reset)
        (x, after), back1 = in_vjp(params, u, before.get("conv"), reset, "silu" if self.taps else "identity")
        key, _ = self._widths
        q, k, v = (heads(part, H) for part in (x[..., :key], x[..., key : 2 * key], x[..., 2 * key :]))
        g, back2 = self._gate_vjp(params, u)
        marks = None if reset is None else reset[..., None, :]
        (o, S), back3 = linear_attention_vjp(q, k, v, g, before["S"], scale=q.shape[-1] ** -0.5, reset=marks)
        y, back4 = out_vjp(params, o, u)

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            later = dstate or {}
            do, du_out, grads = back4(cotangent("GLA", "dy", dy, y))
            *parts, dg, dS = back3(do, later.get("S"))
            du_gate, dgate = back2(dg)
            du_in, dW_in, dconv = back1(xp.concatenate([channels(d) for d in parts], -1), later.get("conv"))
            grads |= dgate | dW_in
            first = dconv | {"S": dS} if isinstance(state, dict) else None
            return {name: grads[name] for name in params}, du_in + du_gate + du_out, first

        return (y, None if state is None else after | {"S": S}), pullback

    def _gate_vjp(self, params: Params, u: Array) -> tuple[Array, Callable[[Array], tuple[Array, Params]]]:
        """The logarithm of the decay, (…, H, T, K), and the pullback to u and the gate's parameters."""
        low, back1 = dense_vjp(u, params["W_a"]["w"])
        z, back2 = dense_vjp(low, *affine(params["W_b"]))
        cost, back3 = activation_vjp(-z, "softplus")  # -log σ(z)
        slow = u.dtype.type(-1 / _SLOW)

        def pullback(dg: Array) -> tuple[Array, Params]:
            dlow, dw_b, db = back2(-back3(slow * channels(dg)))
            du, dw_a, _ = back1(dlow)
            return du, {"W_a": {"w": dw_a}, "W_b": {"w": dw_b, "b": db}}

        return heads(slow * cost, self.heads), pullback

    @property
    def _widths(self) -> tuple[int, int]:
        """Of all keys and of all values."""
        D, H = self.channels, self.heads
        return H * width("GLA", "key", self.key, D, 2 * H), H * width("GLA", "value", self.value, D, H)
