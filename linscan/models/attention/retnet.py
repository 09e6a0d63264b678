"""RetNet: linear attention whose heads forget at a constant rate each, with rotated queries and keys.

    q, k, v = W_in u,  S[t] = γ_h S[t-1] + (R[t] k[t]) v[t]ᵀ,  o[t] = K^{-½} Sᵀ (R[t] q[t]),  γ_h = 1 - 2^{-5-h}
    y = W_out (norm(o) silu(W_g u)),  where R[t] turns the channels i and i + K/2 by the angle t 10000^{-2i/K}

Only differences of positions count. They are counted from the start of a call, and the state is turned back to meet the
next one, so that it holds no position and a reset needs none.

Y. Sun et al., "Retentive network: a successor to transformer for large language models", 2023, arXiv:2307.08621. As in
its code heads are normalised by root mean squares, here with a trained scale; that code also divides scores by their
sums, which the norm undoes, and turns neighbouring channels, at rates that reach 1 / 10000 itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import linear_attention_vjp
from linscan._arrays import Array, cotangent, namespace
from linscan.models.attention.heads import channels, heads, in_vjp, init_in, init_out, out_vjp, width
from linscan.models.layer import Layer, Params, Pullback, State, Training, typed
from linscan.models.rotary import rotate, turns


@dataclass(frozen=True)
class RetNet(Layer):
    """Multi-scale retention.

    Parameters
    ----------
    channels : int
        D.
    heads : int, default 4
        H.
    key, value : int, optional
        Width of a head's keys, K, even, and values, V. None means D / H and 2 D / H, as published.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import RetNet
    >>> layer = RetNet(channels=8, heads=2)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 8), np.float32), 0)
    >>> y.shape, state["S"].shape
    ((2, 100, 8), (2, 2, 4, 8))
    """

    channels: int
    heads: int = 4
    key: int | None = None
    value: int | None = None

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``W_in``, ``norm``, ``W_g`` and ``W_out``; matrices start uniform within 1 / sqrt(inputs)."""
        D, H, (K, V) = self.channels, self.heads, self._widths
        if K % 2:
            raise ValueError(f"RetNet: the width of keys must be even; got {K}")
        return typed(init_in(rng, D, H * (2 * K + V), 0) | init_out(rng, D, H, V, True), dtype)

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; the state is ``{"S": (…, H, K, V)}``."""
        xp, H, K, T = namespace(u), self.heads, self._widths[0], u.shape[-2]
        S0 = state["S"] if isinstance(state, dict) else None
        marks = None if reset is None else xp.asarray(reset)[..., None, :]
        (x, _), back1 = in_vjp(params, u, None, None, "identity")
        q, k, v = (heads(part, H) for part in (x[..., : H * K], x[..., H * K : 2 * H * K], x[..., 2 * H * K :]))
        (cos, sin), (cos_end, sin_end) = turns(np.arange(T), K, u), turns(T, K, u)
        g = xp.log1p(-(2.0 ** (-5 - xp.arange(H)))).astype(u.dtype).reshape(*(1,) * (u.ndim - 2), H, 1)
        options: Any = {"scale": K**-0.5, "reset": marks}
        (o, S), back2 = linear_attention_vjp(rotate(q, cos, sin), rotate(k, cos, sin), v, g, S0, **options)
        y, back3 = out_vjp(params, o, u)
        final = rotate(S.swapaxes(-1, -2), cos_end, -sin_end).swapaxes(-1, -2)

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            dS = None if dstate is None else rotate(dstate["S"].swapaxes(-1, -2), cos_end, sin_end).swapaxes(-1, -2)
            do, du_out, grads = back3(cotangent("RetNet", "dy", dy, y))
            dq, dk, dv, _, dS0 = back2(do, dS)
            parts = rotate(dq, cos, -sin), rotate(dk, cos, -sin), dv
            du_in, dW_in, _ = back1(xp.concatenate([channels(d) for d in parts], -1), None)
            grads |= dW_in
            return {name: grads[name] for name in params}, du_in + du_out, {"S": dS0} if state else None

        return (y, None if state is None else {"S": final}), pullback

    @property
    def _widths(self) -> tuple[int, int]:
        D, H = self.channels, self.heads
        return width("RetNet", "key", self.key, D, H), self.value or 2 * width("RetNet", "value", None, D, H)
