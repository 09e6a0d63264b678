"""Mamba: a selective state space (S6) behind a short filter, with a second branch as a gate.

    (x, z) = W_in u,  x ← silu(conv₄(x)),  (δ, B, C) = W_x x,  Δ = softplus(W_dt δ + b),  A = -exp(A_log)
    h[t] = exp(Δ A) h[t-1] + Δ B[t] x[t],  y = W_out ((C[t] h[t] + D x[t]) silu(z[t])),  E channels of N states

A. Gu and T. Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023, arXiv:2312.00752. The paper
prints the zero-order hold of B, its code multiplies by Δ (Euler's rule): the code is followed. As there, A starts at
-1 … -N, D at 1, and b such that Δ is log-uniform between 0.001 and 0.1; other weights uniform within 1 / sqrt(inputs).

``negative`` takes ``2 exp(Δ A) - 1`` for the decay, eigenvalues from -1 to 1: R. Grazzi et al., 2024, arXiv:2411.12537.
`Bidirectional` of it is Vision Mamba's layer (L. Zhu et al., 2024, arXiv:2401.09417) with matrices W_in and W_out for
each direction; there they are shared, and the sum of both directions is halved.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import selective_scan_vjp
from linscan._arrays import Array, cotangent, namespace
from linscan.models.gated.signed_scan import signed_scan_vjp
from linscan.models.initial import log_steps, uniform_fan
from linscan.models.layer import Layer, Params, Pullback, State, Training, typed
from linscan.models.recurrence import filter_vjp
from linscan.ops.activation import activation_vjp, softplus_inverse
from linscan.ops.dense import dense_vjp

_TAPS = 4


@dataclass(frozen=True)
class Mamba(Layer):
    """Mamba's layer.

    Parameters
    ----------
    channels : int
        D.
    states : int, default 16
        N of each inner channel.
    expand : int, default 2
        Inner channels E are so many times D.
    rank : int, optional
        Of the matrix that makes Δ. None means D / 16, rounded up.
    negative : bool, default False
        Eigenvalues from -1 to 1, not from 0 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import Mamba
    >>> layer = Mamba(channels=4, states=8)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 4), np.float32), 0)
    >>> y.shape, state["conv"].shape, state["h"].shape
    ((2, 100, 4), (2, 3, 8), (2, 8, 8))
    """

    channels: int
    states: int = 16
    expand: int = 2
    rank: int | None = None
    negative: bool = False

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``W_in``, ``conv``, ``W_x``, ``W_dt``, ``dt_bias`` (E,), ``A_log`` (E, N), ``D`` (E,) and ``W_out``."""
        D, N, E, R = self.channels, self.states, self.channels * self.expand, self._rank
        dt = np.maximum(np.exp(log_steps(rng, (E,), 1e-3, 1e-1)), 1e-4)
        params = {
            "W_in": {"w": uniform_fan(rng, (D, 2 * E), D)},
            "conv": {"w": uniform_fan(rng, (E, _TAPS), _TAPS), "b": uniform_fan(rng, (E,), _TAPS)},
            "W_x": {"w": uniform_fan(rng, (E, R + 2 * N), E)},
            "W_dt": {"w": uniform_fan(rng, (R, E), R)},
            "dt_bias": softplus_inverse(dt),
            "A_log": np.broadcast_to(np.log(np.arange(1, N + 1)), (E, N)),
            "D": np.ones(E),
            "W_out": {"w": uniform_fan(rng, (E, D), E)},
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
        """See `Layer`; the state is ``{"conv": (…, 3, E), "h": (…, E, N)}``."""
        xp, E, R, N = namespace(u), self.channels * self.expand, self._rank, self.states
        before = state if isinstance(state, dict) else {"conv": state, "h": None}
        marks = None if reset is None else xp.asarray(reset)
        xz, back1 = dense_vjp(u, params["W_in"]["w"])
        (c, conv), back2 = filter_vjp(xz[..., :E], params["conv"], before["conv"], marks)
        x, back3 = activation_vjp(c, "silu")
        p, back4 = dense_vjp(x, params["W_x"]["w"])
        dt, back5 = dense_vjp(p[..., :R], params["W_dt"]["w"])
        A, bias, D = -xp.exp(params["A_log"]), params["dt_bias"], params["D"]
        scan = signed_scan_vjp if self.negative else selective_scan_vjp
        inputs = x, dt, A, p[..., R : R + N], p[..., R + N :], D, xz[..., E:], bias, before["h"]
        (s, h), back6 = scan(*inputs, dt_softplus=True, reset=marks)
        y, back7 = dense_vjp(s, params["W_out"]["w"])

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            later = dstate or {"conv": None, "h": None}
            ds, dW_out, _ = back7(cotangent("Mamba", "dy", dy, y))
            dx, ddt, dA, dB, dC, dD, dz, dbias, dh0 = back6(ds, later["h"])
            dlow, dW_dt, _ = back5(ddt)
            dx_p, dW_x, _ = back4(xp.concatenate([dlow, dB, dC], -1))
            dc, dw, db, dconv = back2(back3(dx + dx_p), later["conv"])
            du, dW_in, _ = back1(xp.concatenate([dc, dz], -1))
            matrices = {"W_in": dW_in, "W_x": dW_x, "W_dt": dW_dt, "W_out": dW_out}
            grads: Params = {name: {"w": dW} for name, dW in matrices.items()}
            grads |= {"conv": {"w": dw, "b": db}, "dt_bias": dbias, "A_log": dA * A, "D": dD}
            first = {"conv": dconv, "h": dh0} if isinstance(state, dict) else None
            return {name: grads[name] for name in params}, du, first

        return (y, None if state is None else {"conv": conv, "h": h}), pullback

    @property
    def _rank(self) -> int:
        return self.rank or -(-self.channels // 16)
