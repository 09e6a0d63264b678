"""A network: encoder or embedding, blocks, and a head for every step or for the whole sequence."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan._arrays import Array, check_choice, cotangent, namespace, product
from linscan.models.block import Block
from linscan.models.initial import init_dense
from linscan.models.layer import Layer, Params, Pullback, State, Training
from linscan.models.norm import init_norm, norm_vjp
from linscan.ops.dense import dense, dense_vjp, embedding_vjp


@dataclass(frozen=True)
class Stack(Layer):
    """Blocks between an encoder and a head.

    Parameters
    ----------
    blocks : tuple of Block
        Applied one after the other; ``(block,) * 4`` for four of a kind, or different ones for a hybrid.
    inputs : int
        Features of `u`, (…, T, inputs); or the number of tokens if `u` holds those, (…, T).
    outputs : int
        Classes or numbers predicted.
    tokens : bool, default False
        Embed integers instead of encoding features.
    pool : {"none", "mean", "last"}
        Predict at every step, (…, T, outputs), or once, (…, outputs), from the mean over time or the last step.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import LRU, Block, Stack
    >>> model = Stack((Block(LRU(channels=8, states=4)),) * 2, inputs=5, outputs=3, tokens=True, pool="last")
    >>> params = model.init(np.random.default_rng(0))
    >>> model.apply(params, np.zeros((2, 10), int))[0].shape
    (2, 3)
    """

    blocks: tuple[Block, ...]
    inputs: int
    outputs: int
    tokens: bool = False
    pool: str = "none"

    @property
    def channels(self) -> int:
        """D."""
        return self.blocks[0].channels

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``encoder``, ``block0``, ``block1``, …, ``norm`` (where the last block has none at its end) and ``head``."""
        check_choice("Stack", "pool", self.pool, ("none", "mean", "last"))
        D = self.channels
        encoder = init_dense(rng, self.inputs, D, dtype)
        if self.tokens:
            encoder = {"table": rng.standard_normal((self.inputs, D)).astype(dtype)}
        params = {"encoder": encoder, **{f"block{i}": b.init(rng, dtype) for i, b in enumerate(self.blocks)}}
        norm = init_norm(self._norm, D, dtype, self.blocks[-1].buckets)
        return params | {"norm": norm, "head": init_dense(rng, D, self.outputs, dtype)}

    def apply(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        lengths: Array | None = None,
    ) -> tuple[Array, State]:
        """Output and final state; see `apply_vjp`."""
        return self.apply_vjp(params, u, state, reset=reset, lengths=lengths)[0]

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
        lengths: Array | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; the state is that of every block by its name. `lengths` (…) are those that pooling counts.

        The gradient of tokens is None.
        """
        if state is not None and self.pool == "mean":
            raise ValueError("Stack: a mean over time has no state")
        x, back_in = self._encoded(params["encoder"], u)
        backs, finals = {}, {}
        for i, block in enumerate(self.blocks):
            name = f"block{i}"
            before = state[name] if isinstance(state, dict) else state
            (x, finals[name]), backs[name] = block.apply_vjp(params[name], x, before, reset=reset, training=training)
        x, back_norm = norm_vjp(self._norm, params.get("norm", {}), x, training, self.blocks[-1].buckets)
        p, back_pool = self._pooled(x, lengths)
        y, back_out = dense_vjp(p, params["head"]["w"], params["head"]["b"])

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array | None, State]:
            dp, dw, db = back_out(cotangent("Stack", "dy", dy, y))
            dx, dnorm = back_norm(back_pool(dp))
            grads, dfirst = {"norm": dnorm, "head": {"w": dw, "b": db}}, {}
            for name, back in reversed(backs.items()):
                grads[name], dx, dfirst[name] = back(dx, None if dstate is None else dstate[name])
            du, grads["encoder"] = back_in(dx)
            before = {name: dfirst[name] for name in finals} if isinstance(state, dict) else None
            return {name: grads[name] for name in params}, du, before

        return (y, None if state is None else finals), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, inputs), or one token (…)."""
        if self.pool == "mean":
            raise ValueError("Stack: a mean over time has no step")
        x, finals = self._encoded(params["encoder"], u)[0], {}
        for i, block in enumerate(self.blocks):
            name = f"block{i}"
            x, finals[name] = block.step(params[name], x, state[name] if isinstance(state, dict) else state)
        x = norm_vjp(self._norm, params.get("norm", {}), x, None)[0]
        return dense(x, params["head"]["w"], params["head"]["b"]), finals

    @property
    def _norm(self) -> str:
        return self.blocks[-1].norm if self.blocks[-1].prenorm else "none"

    def _encoded(self, params: Params, u: Array) -> tuple[Array, Callable[[Array], tuple[Array | None, Params]]]:
        if self.tokens:
            x, back = embedding_vjp(u, params["table"])
            return x, lambda dx: (None, {"table": back(dx)[1]})
        x, back_dense = dense_vjp(u, params["w"], params["b"])
        return x, lambda dx: ((grads := back_dense(dx))[0], {"w": grads[1], "b": grads[2]})

    def _pooled(self, x: Array, lengths: Array | None) -> tuple[Array, Callable[[Array], Array]]:
        if self.pool == "none":
            return x, lambda dp: dp
        xp, T = namespace(x), x.shape[-2]
        ends = T if lengths is None else xp.asarray(lengths)[..., None]
        times = xp.arange(T)
        weight = (times < ends) / ends if self.pool == "mean" else times == ends - 1
        weight = xp.broadcast_to(weight.astype(x.dtype), x.shape[:-1])
        pooled = product(weight[..., None, :], x)[..., 0, :]  # a product reads x once and writes no weighted copy
        return pooled, lambda dp: dp[..., None, :] * weight[..., None]
