"""A block: norm, any sequence layer, activation, gate, dropout, and the input added."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan._arrays import Array, check_choice, cotangent
from linscan.models.gate import GATES, mixed_vjp, opened_vjp
from linscan.models.initial import init_dense
from linscan.models.layer import Layer, Params, Pullback, State, Training
from linscan.models.norm import init_norm, norm_vjp
from linscan.ops.activation import activation_vjp
from linscan.ops.dropout import dropout_vjp


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
    buckets : tuple of int, default ()
        With "batch", lengths up to each of these, ascending, have running statistics of their own; longer ones share
        the last's. There is then no state and no step.

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
    buckets: tuple[int, ...] = ()

    @property
    def channels(self) -> int:
        """D."""
        return self.layer.channels

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``norm``, ``layer`` and ``mix`` (what the gate multiplies by), as far as there are any."""
        check_choice("Block", "gate", self.gate, GATES)
        norm = init_norm(self.norm, self.channels, dtype, self.buckets)
        params = {"norm": norm, "layer": self.layer.init(rng, dtype)}
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
        if self.buckets and state is not None:
            raise ValueError("Block: with statistics by length there is no state")
        rng = training.rng if training else None
        first, last = (self.norm, "none") if self.prenorm else ("none", self.norm)
        n, back1 = norm_vjp(first, params.get("norm", {}), u, training, self.buckets)
        (x, final), back2 = self.layer.apply_vjp(params["layer"], n, state, reset=reset, training=training)
        s, back3 = self._added(params, x, u, rng)
        y, back4 = norm_vjp(last, params.get("norm", {}), s, training, self.buckets)

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            ds, dlast = back4(cotangent("Block", "dy", dy, y))
            dx, dmix = back3(ds)
            dlayer, dn, dfirst = back2(dx, dstate)
            du, dfirst_norm = back1(dn, ds)
            grads = {"norm": dfirst_norm if self.prenorm else dlast, "layer": dlayer, "mix": dmix}
            return {name: grads[name] for name in params}, du, dfirst

        return (y, final), pullback

    def _added(self, params: Params, x: Array, u: Array, rng: Any) -> tuple[Array, Callable[[Array], Any]]:
        """The block's input u with what becomes of x added, and the pullback to x and ``mix``; u gets dy itself."""
        whole = rng is None or not self.dropout
        mix = params.get("mix", {})
        if whole and self.gate == "half_glu2":
            return opened_vjp(mix, x, u, self.activation)
        a, back1 = activation_vjp(x, self.activation)
        a, back2 = dropout_vjp(a, self.dropout, rng, tied=self.tied)
        m, back3 = mixed_vjp(self.gate, mix, x, a, u if whole else None)
        m, back4 = dropout_vjp(m, self.dropout, rng, tied=self.tied)

        def pullback(dy: Array) -> tuple[Array, Params]:
            dx, da, dmix = back3(back4(dy))
            return back1(back2(da), dx), dmix

        return m if whole else u + m, pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        if self.buckets:
            raise ValueError("Block: with statistics by length there is no step")
        first, last = (self.norm, "none") if self.prenorm else ("none", self.norm)
        x, state = self.layer.step(params["layer"], norm_vjp(first, params.get("norm", {}), u, None)[0], state)
        return norm_vjp(last, params.get("norm", {}), self._added(params, x, u, None)[0], None)[0], state
