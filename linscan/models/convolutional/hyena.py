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
        beta, names = params["beta"], [f"long{o}" for o in range(1, self.order)]
        before = state if isinstance(state, dict) else dict.fromkeys(["conv", *names], state)
        p, back1 = dense_vjp(u, *affine(params["W_in"]))
        (z, conv), back2 = short_conv_vjp(p, *affine(params["conv"]), 0 if before["conv"] is None else before["conv"])
        taps = u.shape[-2] if state is None else self.length
        filters, back3 = filters_vjp(params["filter"], taps, self.length)
        (v, ends), back4 = _gated_vjp(z, filters, beta, [before[name] for name in names])
        finals = {"conv": conv, **dict(zip(names, ends, strict=True))}
        y, back5 = dense_vjp(v, *affine(params["W_out"]))

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            after = dstate or dict.fromkeys(finals)
            dv, *dW_out = back5(cotangent("Hyena", "dy", dy, y))
            dz, dfilters, dbeta, dlong = back4(dv, [after[name] for name in names])
            dp, dw, dbias, dconv = back2(dz, after["conv"])
            du, *dW_in = back1(dp)
            pairs = {"W_in": dW_in, "conv": (dw, dbias), "W_out": dW_out}
            grads = {name: dict(zip("wb", pair, strict=True)) for name, pair in pairs.items()}
            grads |= {"filter": back3(dfilters), "beta": dbeta}
            first = {"conv": dconv, **dict(zip(names, dlong, strict=True))} if isinstance(state, dict) else None
            return {name: grads[name] for name in params}, du, first

        return (y, None if state is None else finals), pullback


def _gated_vjp(z: Array, filters: Array, beta: Array, before: list[State]) -> tuple[tuple[Array, list[State]], Any]:
    """Gates and long convolutions of z = (x₀, …, v), the last order first, with the states of the convolutions.

    The pullback takes the cotangents of the result and of the states, and gives those of all arguments.
    """
    xp, n, D = namespace(z), len(beta) + 1, beta.shape[-1]
    *x, v = (z[..., o * D : (o + 1) * D] for o in range(n + 1))
    finals, seen = list(before), {}
    for o in reversed(range(1, n)):
        state, gated = before[o - 1], v * x[o]
        out, back = fft_conv_vjp(gated, filters[:, (o - 1) * D : o * D], axis=-2, state=state)
        long, finals[o - 1] = (out, None) if state is None else out
        seen[o] = v, gated, back
        v = long + beta[o - 1] * gated

    def pullback(dy: Array, after: list[State]) -> tuple[Array, Array, Array, list[State]]:
        dz, dfilters, dbeta, dbefore = xp.empty_like(z), xp.empty_like(filters), xp.empty_like(beta), list(after)
        dz[..., :D], dv = dy * v, dy * x[0]
        for o in range(1, n):
            (inner, gated, back), cotangents = seen[o], (dv,) if before[o - 1] is None else (dv, after[o - 1])
            dgated, dfilters[:, (o - 1) * D : o * D], dbefore[o - 1] = back(*cotangents)
            dbeta[o - 1] = sum_rows(dv * gated)
            dgated = dgated + beta[o - 1] * dv  # v ← h * (v x) + β v x
            dz[..., o * D : (o + 1) * D], dv = dgated * inner, dgated * x[o]
        dz[..., n * D :] = dv
        return dz, dfilters, dbeta, dbefore

    return (v * x[0], finals), pullback
