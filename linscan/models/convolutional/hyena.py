"""Hyena: long convolutions with implicit filters, between gates.

    (x₀, …, x₍ₙ₋₁₎, v) = conv₃(W_in u);  for o = n-1 … 1:  v ← h_o * (v x_o) + β_o v x_o;  y = W_out (v x₀)

The filters ``h_o`` are what a small network with sines makes of the position, times exponential windows.

M. Poli et al., "Hyena hierarchy: towards larger convolutional language models", 2023, arXiv:2302.10866. As in the
published code (the paper leaves it open) all hidden layers of that network share one trained vector of frequencies,
windows are fixed, and positions are fractions of `length`, the longest reach of a filter.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import fft_conv_vjp, short_conv_vjp
from linscan._arrays import Array, cotangent, namespace, sum_rows
from linscan.models.convolutional.implicit import filters_vjp, init_filter
from linscan.models.initial import uniform_fan
from linscan.models.layer import Layer, Params, Pullback, State, Training, affine, apart, typed
from linscan.ops.dense import dense_vjp

_TAPS = 3  # of the short filter


@dataclass(frozen=True)
class Hyena(Layer):
    """A Hyena operator.

    Parameters
    ----------
    channels : int
        D.
    length : int
        Taps of the long filters; longer sequences are allowed, and seen through this window.
    order : int, default 2
        n gates, of which n - 1 follow a long convolution.
    features : int, default 3
        Of a position: itself and an odd rest of sines and cosines.
    width : int, default 64
        Of the network's hidden layers.
    frequency : float, default 1
        That the sines start with.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import Hyena
    >>> layer = Hyena(channels=4, length=100, order=3)
    >>> params = layer.init(np.random.default_rng(0))
    >>> layer.apply(params, np.ones((2, 100, 4), np.float32))[0].shape
    (2, 100, 4)
    """

    channels: int
    length: int
    order: int = 2
    features: int = 3
    width: int = 64
    frequency: float = 1.0

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``W_in``, ``conv``, ``filter`` (``w0``, ``b0``, …, ``frequency``), ``beta`` (n - 1, D) and ``W_out``."""
        if self.order < 2 or self.features % 2 == 0:
            raise ValueError(f"Hyena: order must be at least 2 and features odd; got {self.order} and {self.features}")
        D, n = self.channels, self.order
        params = {
            "W_in": {"w": uniform_fan(rng, (D, D * (n + 1)), D), "b": uniform_fan(rng, (D * (n + 1),), D)},
            "conv": {"w": uniform_fan(rng, (D * (n + 1), _TAPS), _TAPS), "b": uniform_fan(rng, (D * (n + 1),), _TAPS)},
            "filter": init_filter(rng, (self.features, self.width, D * (n - 1)), self.frequency),
            "beta": rng.standard_normal((n - 1, D)),
            "W_out": {"w": uniform_fan(rng, (D, D), D), "b": uniform_fan(rng, (D,), D)},
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
        """See `Layer`; the state: ``{"conv": (…, 2, (n + 1) D), "long1": (…, length - 1, D), …}``; `reset` is (T,)."""
        if reset is not None:
            return apart(self, params, u, state, reset, training)
        xp, D, n, beta = namespace(u), self.channels, self.order, params["beta"]
        names = [f"long{o}" for o in range(1, n)]
        before = state if isinstance(state, dict) else dict.fromkeys(["conv", *names], state)
        p, back1 = dense_vjp(u, *affine(params["W_in"]))
        start = 0 if before["conv"] is None else before["conv"]
        (z, conv), back2 = short_conv_vjp(p, *affine(params["conv"]), start)
        x = [z[..., o * D : (o + 1) * D] for o in range(n)]
        v, finals, backs, seen = z[..., n * D :], {"conv": conv}, {}, {}
        taps = u.shape[-2] if state is None else self.length
        filters, back3 = filters_vjp(params["filter"], taps, self.length)
        for o in reversed(range(1, n)):
            k, name = filters[:, (o - 1) * D : o * D], f"long{o}"
            seen[o] = v, v * x[o]
            out, backs[o] = fft_conv_vjp(seen[o][1], k, axis=-2, state=before[name])
            long, finals[name] = (out, None) if state is None else out
            v = long + beta[o - 1] * seen[o][1]
        y, back4 = dense_vjp(v * x[0], *affine(params["W_out"]))

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            after = dstate or dict.fromkeys(finals)
            dg, *dW_out = back4(cotangent("Hyena", "dy", dy, y))
            dz, dfilters, dbeta = xp.zeros_like(z), xp.zeros_like(filters), xp.zeros_like(beta)
            dfirst: Params = {}
            dz[..., :D], dv = dg * v, dg * x[0]
            for o in range(1, n):
                name, cotangents = f"long{o}", (dv,) if state is None else (dv, after[f"long{o}"])
                dgated, dfilters[:, (o - 1) * D : o * D], dfirst[name] = backs[o](*cotangents)
                dbeta[o - 1] = sum_rows(dv * seen[o][1])
                dgated = dgated + beta[o - 1] * dv
                dz[..., o * D : (o + 1) * D], dv = dgated * seen[o][0], dgated * x[o]
            dz[..., n * D :] = dv
            dp, dw, dbias, dfirst["conv"] = back2(dz, after["conv"])
            du, *dW_in = back1(dp)
            pairs = {"W_in": dW_in, "conv": (dw, dbias), "W_out": dW_out}
            grads = {name: dict(zip("wb", pair, strict=True)) for name, pair in pairs.items()}
            grads |= {"filter": back3(dfilters), "beta": dbeta}
            first = {name: dfirst[name] for name in finals} if isinstance(state, dict) else None
            return {name: grads[name] for name in params}, du, first

        return (y, None if state is None else finals), pullback
