"""What every layer and model is: four functions on plain dictionaries of arrays.

- ``init(rng, dtype) -> params``: a nested dict of arrays with the paper's names, on the host.
- ``apply(params, u, state=None, *, reset=None) -> (y, state)`` for `u` and `y` of shape (…, T, D). As in
  `linscan.fft_conv`, None means zero and that no state is wanted back; 0 means zero, and gives the one that continues.
  ``reset`` (…, T) is true at the first steps of packed sequences.
- ``apply_vjp(params, u, state=None, *, reset=None, training=None) -> ((y, state), pullback)``, with ``pullback(dy,
  dstate=None) -> (dparams, du, dstate)``.
- ``step(params, u_t, state) -> (y_t, state)``: one time, in constant memory, with the same state object.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from linscan import _arrays, _trees
from linscan._arrays import Array

Params = dict[str, Any]
State = Any  # None, 0, or a tree of arrays
Pullback = Callable[..., tuple[Params, Array | None, State]]


@dataclass
class Training:
    """What a forward in training has beside one in use: randomness, and a place for statistics of the batch."""

    rng: np.random.Generator | None = None
    statistics: list[tuple[Array, Array]] = field(default_factory=list)  # running ones, and those of this batch
    kept: float = 0.95  # of the running statistics at every batch, as in S5

    def update(self) -> None:
        """Move the running statistics towards the batch's."""
        running, batch = ([pair[i] for pair in self.statistics] for i in range(2))
        _arrays.move_all(running, batch, 1 - self.kept)
        self.statistics.clear()


class Layer:
    """A sequence layer: a frozen description that makes, runs and differentiates parameters it does not hold."""

    packs = True  # whether `apply_vjp` takes any `reset`; else `apart` runs packed sequences one by one

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """Fresh parameters on the host: `dtype` or its complex counterpart."""
        raise NotImplementedError

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """Output, final state, and the pullback of both."""
        raise NotImplementedError

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time step: `apply` to one time, where a layer has no shorter way."""
        y, state = self.apply(params, u[..., None, :], state)
        return y[..., 0, :], state

    def apply(
        self, params: Params, u: Array, state: State = None, *, reset: Array | None = None
    ) -> tuple[Array, State]:
        """Output and final state, as in use: no dropout, running statistics."""
        return self.apply_vjp(params, u, state, reset=reset)[0]


def typed(params: Params, dtype: Any) -> Params:
    """The same tree in `dtype`, or for complex arrays its complex counterpart, each array in memory of its own."""
    real = np.dtype(dtype)
    arrays = [np.asarray(x) for x in _trees.leaves(params).values()]
    kinds = [_arrays.complex_dtype(real) if x.dtype.kind == "c" else real for x in arrays]
    return _trees.rebuild(params, [np.array(x, k, order="C") for x, k in zip(arrays, kinds, strict=True)])


def affine(params: Params) -> tuple[Array, Array]:
    """Weights and biases of an ordinary layer."""
    return params["w"], params["b"]


def grads_like(grads: Params, params: Params) -> Params:
    """The gradients that `params` has a place for, each of its parameter's shape and dtype, in its order."""
    return {name: _arrays.grad_like(grads[name], x) for name, x in params.items()}


def apart(layer: Layer, params: Params, u: Array, state: State, reset: Array, training: Training | None) -> Any:
    """`apply_vjp` of packed sequences one by one, for layers that cannot forget inside a run; `reset` is (T,)."""
    who = type(layer).__name__
    reset = _arrays.to_host(reset)
    if reset.shape != u.shape[-2:-1]:
        raise ValueError(f"{who}: reset must have shape {u.shape[-2:-1]}, the same for every row; got {reset.shape}")
    edges = [0, *(np.flatnonzero(reset[1:]) + 1).tolist(), u.shape[-2]]
    spans = list(pairwise(edges))
    carried = state is not None
    begins = [state if i == 0 and not reset[:1].any() else 0 if carried else None for i in range(len(spans))]
    runs = [
        layer.apply_vjp(params, u[..., lo:hi, :], first, training=training)
        for (lo, hi), first in zip(spans, begins, strict=True)
    ]
    xp = _arrays.namespace(u)
    y = xp.concatenate([run[0][0] for run in runs], -2)
    last = runs[-1][0][1]

    def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
        dy = _arrays.cotangent(who, "dy", dy, y)
        after = [None] * (len(runs) - 1) + [dstate]
        backs = [run[1](dy[..., lo:hi, :], ds) for run, (lo, hi), ds in zip(runs, spans, after, strict=True)]
        dparams = total([back[0] for back in backs])
        dfirst = backs[0][2]
        if carried and reset[:1].any():  # nothing flows back over the first mark
            dfirst = None if isinstance(state, int) else zeros(state)
        return dparams, xp.concatenate([back[1] for back in backs], -2), dfirst

    return (y, last), pullback


def total(trees: list[Any]) -> Any:
    """The leafwise sum of trees of one structure."""
    rows = [list(_trees.leaves(tree).values()) for tree in trees]
    return _trees.rebuild(trees[0], [sum(column[1:], column[0]) for column in zip(*rows, strict=True)])


def zeros(tree: Any) -> Any:
    """Zeros of the shapes and dtypes of `tree`."""
    return _trees.rebuild(tree, [_arrays.namespace(x).zeros_like(x) for x in _trees.leaves(tree).values()])
