"""A block: norm, any sequence layer, activation, gate, dropout, and the input added."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan._arrays import Array, check_choice, cotangent
from linscan.models.initial import uniform_fan
from linscan.models.layer import Layer, Params, Pullback, State, Training, typed
from linscan.models.norm import init_norm, norm_vjp
from linscan.ops.activation import activation_vjp, glu_vjp
from linscan.ops.dense import dense_vjp, dropout_vjp

_GATES = ("glu", "half_glu1", "half_glu2", "linear", "none")


@dataclass(frozen=True)
class Block(Layer):
    """``u + gate(activation(layer(norm(u))))``, or with the norm at the end.

    Parameters
    ----------
    layer : Layer
        Any layer of `linscan.models`.
    norm : {"layer", "rms", "batch", "none"}
        "batch" normalises by the batch in training and by running statistics in use.
    prenorm : bool, default True
        Before the layer; False: after the sum.
    activation : str, default "gelu"
        See `linscan.ops.activation`.
    gate : {"glu", "half_glu1", "half_glu2", "linear", "none"}
        With a the activated output x of the layer: ``glu`` of ``W a + b``, twice as wide (S4, LRU); ``a σ(W a + b)``;
        ``x σ(W a + b)`` (both S5); ``W a + b``; a.
    dropout : float, default 0
        Share of entries dropped, in training, after the activation and after the gate.
    tied : bool, default False
        Drop the same channels at all times.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import S4D, Block
    >>> block = Block(S4D(channels=4, states=8), norm="rms")
    >>> params = block.init(np.random.default_rng(0))
    >>> sorted(params), block.apply(params, np.ones((50, 4), np.float32))[0].shape
    (['layer', 'mix', 'norm'], (50, 4))
    """

    layer: Any
    norm: str = "layer"
    prenorm: bool = True
    activation: str = "gelu"
    gate: str = "glu"
    dropout: float = 0.0
    tied: bool = False

    @property
    def channels(self) -> int:
        """D."""
        return self.layer.channels

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``norm``, ``layer`` and ``mix`` (what the gate multiplies by), as far as there are any."""
        check_choice("Block", "gate", self.gate, _GATES)
        params = {"norm": init_norm(self.norm, self.channels, dtype), "layer": self.layer.init(rng, dtype)}
        if self.gate != "none":
            params["mix"] = init_dense(rng, self.channels, self.channels * (1 + (self.gate == "glu")), dtype)
        return params

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; the state is the layer's."""
        rng = training.rng if training else None
        first, last = (self.norm, "none") if self.prenorm else ("none", self.norm)
        n, back1 = norm_vjp(first, params.get("norm", {}), u, training)
        (x, final), back2 = self.layer.apply_vjp(params["layer"], n, state, reset=reset, training=training)
        m, back3 = self._gated(params, x, rng)
        m, back4 = dropout_vjp(m, self.dropout, rng, tied=self.tied)
        y, back5 = norm_vjp(last, params.get("norm", {}), u + m, training)

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            dsum, dlast = back5(cotangent("Block", "dy", dy, y))
            dx, dmix = back3(back4(dsum))
            dlayer, dn, dfirst = back2(dx, dstate)
            du, dnorm = back1(dn)
            grads = {"norm": dnorm if self.prenorm else dlast, "layer": dlayer, "mix": dmix}
            return {name: grads[name] for name in params}, dsum + du, dfirst

        return (y, final), pullback

    def _gated(self, params: Params, x: Array, rng: Any) -> tuple[Array, Callable[[Array], tuple[Array, Params]]]:
        a, back1 = activation_vjp(x, self.activation)
        a, back2 = dropout_vjp(a, self.dropout, rng, tied=self.tied)
        if self.gate == "none":
            return a, lambda dy: (back1(back2(dy)), {})
        m, back3 = dense_vjp(a, params["mix"]["w"], params["mix"]["b"])
        half = self.gate.startswith("half")
        g, back4 = glu_vjp(m) if self.gate == "glu" else activation_vjp(m, "sigmoid" if half else "identity")
        value = {"half_glu1": a, "half_glu2": x}.get(self.gate)

        def pullback(dy: Array) -> tuple[Array, Params]:
            da, dw, db = back3(back4(dy if value is None else dy * value))
            da = da + dy * g if self.gate == "half_glu1" else da
            dx = back1(back2(da))
            return dx + dy * g if self.gate == "half_glu2" else dx, {"w": dw, "b": db}

        return g if value is None else value * g, pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        first, last = (self.norm, "none") if self.prenorm else ("none", self.norm)
        x, state = self.layer.step(params["layer"], norm_vjp(first, params.get("norm", {}), u, None)[0], state)
        return norm_vjp(last, params.get("norm", {}), u + self._gated(params, x, None)[0], None)[0], state


def init_dense(rng: np.random.Generator, rows: int, columns: int, dtype: Any) -> Params:
    """Weights and biases, uniform within ``1 / sqrt(rows)`` of 0."""
    return typed({"w": uniform_fan(rng, (rows, columns), rows), "b": uniform_fan(rng, (columns,), rows)}, dtype)
