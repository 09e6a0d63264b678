"""MEGA: attention inside chunks on top of damped moving averages, with gates.

    x = norm(u),  m = ema(x),  (φ, z, r, h') = (σ, silu, silu, identity) of W_m m,  v = silu(W_v x)
    o = attention(z, v) inside chunks,  h = silu(h' + W_h (r o)),  u ← u + φ (h - u)

X. Ma et al., "Mega: moving average equipped gated attention", 2022, arXiv:2209.10655. Of the published code's two
position biases this is the rotary one, which makes them further features of queries and keys. The code swaps the names
of α and δ; the paper is followed, and both start alike. The last chunk may be shorter, which the code does not allow.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan._arrays import Array, cotangent, namespace
from linscan.models.attention.chunk_attention import chunk_attention_vjp
from linscan.models.attention.ema import ema_vjp, init_ema
from linscan.models.block import Block
from linscan.models.feed_forward import FeedForward
from linscan.models.layer import Layer, Params, Pullback, State, Training, affine, typed
from linscan.models.norm import init_norm, norm_vjp
from linscan.ops.activation import activation_vjp, sigmoid
from linscan.ops.dense import dense_vjp


@dataclass(frozen=True)
class MEGA(Layer):
    """A MEGA layer with its norm. What it gives is the change, φ (h - u): a `Block` without norm and gate adds u.

    Parameters
    ----------
    channels : int
        D.
    chunk : int, default 128
        C steps, inside which attention looks.
    states : int, default 16
        N averages a channel.
    width : int, default 64
        Z, of queries and keys, even; values have 2 D.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import MEGA
    >>> layer = MEGA(channels=4, chunk=16, width=8)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 4), np.float32), 0)
    >>> y.shape, state["ema"].shape, state["kv"].shape
    ((2, 100, 4), (2, 4, 16), (2, 16, 26))
    """

    channels: int
    chunk: int = 128
    states: int = 16
    width: int = 64

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``norm``, ``ema``, ``W_v``, ``W_m``, ``W_h`` with ``w`` and ``b``, ``kappa``, ``mu`` and ``bias`` (2, Z)."""
        D, Z = self.channels, self.width
        shapes = {"W_v": (D, 2 * D), "W_m": (D, 4 * D + Z), "W_h": (2 * D, D)}
        params: Params = {"norm": init_norm("layer", D, dtype), "ema": init_ema(rng, D, self.states)}
        params |= {n: {"w": 0.02 * rng.standard_normal(s), "b": np.zeros(s[1])} for n, s in shapes.items()}
        params |= {"kappa": 0.02 * rng.standard_normal((2, Z)), "mu": np.zeros((2, Z))}
        return typed(params | {"bias": 0.02 * rng.standard_normal((2, Z))}, dtype)

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; the state is ``{"ema": (…, D, N), "kv": (…, C, 2 Z + 2 D + 2)}``."""
        xp, D, Z = namespace(u), self.channels, self.width
        before = state if isinstance(state, dict) else {"ema": state, "kv": state}
        x, back1 = norm_vjp("layer", params["norm"], u, None)
        (m, ema), back2 = ema_vjp(params["ema"], x, before["ema"], reset)
        (p, back3), (pv, back4) = (dense_vjp(s, *affine(params[n])) for s, n in ((m, "W_m"), (x, "W_v")))
        phi, (zr, back5) = sigmoid(p[..., :D]), activation_vjp(p[..., D : 3 * D + Z], "silu")
        v, back6 = activation_vjp(pv, "silu")
        z, r = zr[..., :Z], zr[..., Z:]
        (o, kv), back7 = chunk_attention_vjp(params, z, v, self.chunk, before["kv"], reset)
        ph, back8 = dense_vjp(r * o, *affine(params["W_h"]))
        h, back9 = activation_vjp(p[..., 3 * D + Z :] + ph, "silu")
        change = h - u
        y = phi * change

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            after = dstate or {"ema": None, "kv": None}
            dy = cotangent("MEGA", "dy", dy, y)
            dh = back9(dy * phi)
            dro, *W_h = back8(dh)
            dz, dv, dpairs, dkv = back7(dro * r, after["kv"])
            dzr = back5(xp.concatenate([dz, dro * o], -1))
            dm, *W_m = back3(xp.concatenate([dy * change * phi * (1 - phi), dzr, dh], -1))
            dema, dx, dfirst = back2(dm, after["ema"])
            dx_v, *W_v = back4(back6(dv))
            du, dnorm = back1(dx + dx_v)
            grads = {n: dict(zip("wb", g, strict=True)) for n, g in (("W_v", W_v), ("W_m", W_m), ("W_h", W_h))}
            grads |= {"norm": dnorm, "ema": dema} | dpairs
            first = {"ema": dfirst, "kv": dkv} if isinstance(state, dict) else None
            return {name: grads[name] for name in params}, du - dy * phi, first

        return (y, None if state is None else {"ema": ema, "kv": kv}), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        y, state = self.apply(params, u[..., None, :], state)
        return y[..., 0, :], state


def mega(channels: int, *, chunk: int = 128) -> tuple[Block, ...]:
    """A MEGA layer and the feed-forward layer that follows it, each added to the stream.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import Stack, mega
    >>> model = Stack(mega(channels=8, chunk=16) * 2, inputs=3, outputs=2)
    >>> model.apply(model.init(np.random.default_rng(0)), np.ones((2, 50, 3), np.float32))[0].shape
    (2, 50, 2)
    """
    mixing = FeedForward(channels, 2 * channels, "silu", gated=False)
    plain: dict[str, Any] = {"activation": "identity", "gate": "none"}
    return Block(MEGA(channels, chunk), norm="none", **plain), Block(mixing, **plain)
