"""Griffin's other half: attention over a window, with many query heads and one key head.

    q = R[t] (W_q u)  in H heads,  k = R[t] (W_k u),  v = W_v u,  y = W_o local_attention(q, k, v) + b

R turns pairs among the first half of a head's features by angles that grow with the position (rotary embedding).

S. De et al., "Griffin: mixing gated linear recurrences with local attention for efficient language models", 2024,
arXiv:2402.19427. A window counts the query's own step, as in the paper; published code sees one step more. Only
distances of positions matter, so each call counts from its own start, and the keys in a state are turned back by the
call's length: angles stay small however long the sequence, and a state has no clock.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import local_attention_step, local_attention_vjp
from linscan._arrays import Array, cotangent, namespace
from linscan.models.attention.heads import channels, heads
from linscan.models.initial import lecun_normal
from linscan.models.layer import Layer, Params, Pullback, State, Training, affine, typed
from linscan.models.rotary import rotate, turns
from linscan.ops.dense import dense, dense_vjp


@dataclass(frozen=True)
class LocalAttention(Layer):
    """Attention over the last `window` steps.

    Parameters
    ----------
    channels : int
        D.
    heads : int, default 4
        H query heads of K = D / H features, which must be a multiple of 4.
    window : int, default 128
        Steps that a query sees, its own included.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import LocalAttention
    >>> layer = LocalAttention(channels=8, heads=2, window=16)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 8), np.float32), 0)
    >>> y.shape, state.shape
    ((2, 100, 8), (2, 1, 15, 10))
    """

    channels: int
    heads: int = 4
    window: int = 128

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``W_q`` (D, D), ``W_k`` and ``W_v`` (D, K), and ``W_o`` with ``w`` and ``b``."""
        D, H = self.channels, self.heads
        if D % (4 * H):
            raise ValueError(f"LocalAttention: a head's width must be a multiple of 4; got {D} channels of {H} heads")
        wide = {"W_q": D, "W_k": D // H, "W_v": D // H}
        params = {name: lecun_normal(rng, (D, columns), D) for name, columns in wide.items()}
        return typed(params | {"W_o": {"w": lecun_normal(rng, (D, D), D), "b": np.zeros(D)}}, dtype)

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; the state is that of `linscan.local_attention`, (…, 1, window - 1, 2 K + 2)."""
        marks = None if reset is None else namespace(u).asarray(reset)[..., None, :]
        n, T = self.channels // self.heads // 2, u.shape[-2]
        (cos, sin), (cos_back, sin_back) = turns(np.arange(T), n, u), turns(-T, n, u)
        (pq, back_q), (pk, back_k), (pv, back_v) = (dense_vjp(u, params[name]) for name in ("W_q", "W_k", "W_v"))
        q, k = rotate(heads(pq, self.heads), cos, sin), rotate(pk[..., None, :, :], cos, sin)
        back: Any
        out, back = local_attention_vjp(q, k, pv[..., None, :, :], self.window, None, state, reset=marks)
        o, final = (out, None) if state is None else out
        y, back_o = dense_vjp(channels(o), *affine(params["W_o"]))

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            do, dw, db = back_o(cotangent("LocalAttention", "dy", dy, y))
            dfinal = None if dstate is None else rotate(dstate, cos_back, -sin_back)
            cotangents = (heads(do, self.heads),) if state is None else (heads(do, self.heads), dfinal)
            dq, dk, dv, _, dfirst = back(*cotangents)
            du_q, dW_q, _ = back_q(channels(rotate(dq, cos, -sin)))
            du_k, dW_k, _ = back_k(rotate(dk, cos, -sin)[..., 0, :, :])
            du_v, dW_v, _ = back_v(dv[..., 0, :, :])
            grads = {"W_q": dW_q, "W_k": dW_k, "W_v": dW_v, "W_o": {"w": dw, "b": db}}
            return grads, du_q + du_k + du_v, None if isinstance(state, int) else dfirst

        return (y, None if state is None else rotate(final, cos_back, sin_back)), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        q, k, v = (dense(u, params[name]) for name in ("W_q", "W_k", "W_v"))
        q = q.reshape(*q.shape[:-1], self.heads, -1)
        o, final = local_attention_step(q, k[..., None, :], v[..., None, :], self.window, None, state)
        cos, sin = turns(-1, self.channels // self.heads // 2, u)
        return dense(o.reshape(u.shape), *affine(params["W_o"])), rotate(final, cos, sin)
