"""Hawk: the real-gated linear recurrent unit (RG-LRU) behind a short filter, with a second branch as a gate.

    x = conv(W_x u),  r = σ(G_a x),  i = σ(G_x x),  log a = -8 r softplus(ρ)
    h[t] = a[t] h[t-1] + sqrt(1 - a[t]²) i[t] x[t],  y = W_o (gelu(W_y u) h)

G_a and G_x are block-diagonal, one block for each head.

S. De et al., "Griffin: mixing gated linear recurrences with local attention for efficient language models", 2024,
arXiv:2402.19427. The paper's equation holds at every step here; published code leaves the square root out where a
sequence begins, and limits its derivative near a = 1, which here is the true one. The paper asks for ``a⁸`` between 0.9
and 0.999 at the start, its code for a: the code is followed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import scan_step, short_conv_step
from linscan._arrays import Array, accum_dtype, cotangent, namespace, sum_rows
from linscan.models.block_diagonal import block_diagonal_vjp
from linscan.models.initial import lecun_normal
from linscan.models.layer import Layer, Params, Pullback, State, Training, affine, typed
from linscan.models.recurrence import filter_vjp, recurrence_vjp
from linscan.ops.activation import activation, activation_vjp, sigmoid, softplus, softplus_inverse
from linscan.ops.dense import dense, dense_vjp

_TAPS, _POWER = 4, 8.0


@dataclass(frozen=True)
class Hawk(Layer):
    """Hawk's recurrent layer.

    Parameters
    ----------
    channels : int
        D.
    width : int, optional
        Channels of the recurrence, W. None means D.
    heads : int, default 1
        Blocks of the gates' matrices; they divide W.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import Hawk
    >>> layer = Hawk(channels=4, width=6, heads=2)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 4), np.float32), 0)
    >>> y.shape, state["conv"].shape, state["h"].shape
    ((2, 100, 4), (2, 3, 6), (2, 6))
    """

    channels: int
    width: int | None = None
    heads: int = 1

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``W_x``, ``W_y``, ``W_o``, ``conv``, ``G_x`` and ``G_a``, each ``w`` and ``b``, and ``rho`` (W,)."""
        D, W, H = self.channels, self.width or self.channels, self.heads
        if W % H:
            raise ValueError(f"Hawk: heads must divide the width, {W}; got {H}")
        size = np.sqrt(rng.uniform(0.9**2, 0.999**2, W))  # of a where r = 1/8
        params = {
            "W_x": {"w": lecun_normal(rng, (D, W), D), "b": np.zeros(W)},
            "W_y": {"w": lecun_normal(rng, (D, W), D), "b": np.zeros(W)},
            "conv": {"w": rng.standard_normal((W, _TAPS)) * np.sqrt(0.01 / _TAPS), "b": np.zeros(W)},
            "G_x": {"w": lecun_normal(rng, (H, W // H, W // H), W // H), "b": np.zeros(W)},
            "G_a": {"w": lecun_normal(rng, (H, W // H, W // H), W // H), "b": np.zeros(W)},
            "rho": softplus_inverse(-np.log(size)),
            "W_o": {"w": lecun_normal(rng, (W, D), W), "b": np.zeros(D)},
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
        """See `Layer`; the state is ``{"conv": (…, 3, W), "h": (…, W)}``."""
        before = state if isinstance(state, dict) else {"conv": state, "h": state}
        marks = None if reset is None else namespace(u).asarray(reset)
        p, back1 = dense_vjp(u, *affine(params["W_x"]))
        (x, conv), back2 = filter_vjp(p, params["conv"], before["conv"], marks)
        (a, b), back3 = self._gates_vjp(params, x)
        (h, final), back4 = recurrence_vjp(a, b, before["h"], reset, 1)
        q, back5 = dense_vjp(u, *affine(params["W_y"]))
        gate, back6 = activation_vjp(q, "gelu")
        y, back7 = dense_vjp(gate * h, *affine(params["W_o"]))

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            after = dstate or {"conv": None, "h": None}
            dgh, *dW_o = back7(cotangent("Hawk", "dy", dy, y))
            du_y, *dW_y = back5(back6(dgh * h))
            da, db, dh0 = back4(dgh * gate, after["h"])
            dx, dgates = back3(da, db)
            dp, dw, dbias, dconv = back2(dx, after["conv"])
            du_x, *dW_x = back1(dp)
            pairs = {"W_x": dW_x, "W_y": dW_y, "conv": (dw, dbias), "W_o": dW_o}
            grads = dgates | {name: dict(zip("wb", pair, strict=True)) for name, pair in pairs.items()}
            dfirst = {"conv": dconv, "h": dh0} if isinstance(state, dict) else None
            return {name: grads[name] for name in params}, du_x + du_y, dfirst

        return (y, None if state is None else {"conv": conv, "h": final}), pullback

    def _gates_vjp(self, params: Params, x: Array) -> tuple[tuple[Array, Array], Callable[[Array, Array], Any]]:
        """The recurrence's a and b, and the pullback to x and the gates' parameters."""
        xp, rate = namespace(x), -_POWER * softplus(params["rho"])
        zi, back_i = block_diagonal_vjp(x, *affine(params["G_x"]))
        zr, back_r = block_diagonal_vjp(x, *affine(params["G_a"]))
        i, r = sigmoid(zi), sigmoid(zr)
        log_a = rate * r
        a, size = xp.exp(log_a), xp.sqrt(-xp.expm1(2 * log_a))

        def pullback(da: Array, db: Array) -> tuple[Array, Params]:
            # size = sqrt(1 - e^(2 log a)): d size = -a² / size d log a.
            dlog = a * (da - db * i * x * a / xp.maximum(size, xp.finfo(accum_dtype(x.dtype)).tiny))
            dx_i, dw_i, db_i = back_i(db * size * x * i * (1 - i))
            dx_r, dw_r, db_r = back_r(dlog * rate * r * (1 - r))
            drho = -_POWER * sum_rows(dlog * r) * sigmoid(params["rho"])
            grads = {"G_x": {"w": dw_i, "b": db_i}, "G_a": {"w": dw_r, "b": db_r}, "rho": drho}
            return db * size * i + dx_i + dx_r, grads

        return (a, size * i * x), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        before = state if isinstance(state, dict) else {"conv": state, "h": state}
        x, conv = short_conv_step(dense(u, *affine(params["W_x"])), *affine(params["conv"]), before["conv"])
        h = scan_step(*self._gates_vjp(params, x)[0], before["h"])
        gate = activation(dense(u, *affine(params["W_y"])), "gelu")
        return dense(gate * h, *affine(params["W_o"])), {"conv": conv, "h": h}
