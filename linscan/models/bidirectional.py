"""Any causal layer run in both directions, with parameters for each."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan._arrays import Array, namespace
from linscan.models.layer import Layer, Params, Pullback, State, Training
from linscan.models.recurrence import firsts


@dataclass(frozen=True)
class Bidirectional(Layer):
    """``y = forward(u) + flip(backward(flip(u)))``; both read the present.

    Parameters
    ----------
    layer : Layer
        A causal layer.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import S4D, Bidirectional
    >>> layer = Bidirectional(S4D(channels=4, states=8))
    >>> params = layer.init(np.random.default_rng(0))
    >>> sorted(params), layer.apply(params, np.ones((50, 4), np.float32))[0].shape
    (['backward', 'forward'], (50, 4))
    """

    layer: Any

    @property
    def channels(self) -> int:
        """D."""
        return self.layer.channels

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``forward`` and ``backward``."""
        return {"forward": self.layer.init(rng, dtype), "backward": self.layer.init(rng, dtype)}

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; there is no state."""
        if state is not None:
            raise ValueError("Bidirectional: a bidirectional layer has no state")
        flipped = None if reset is None else firsts(namespace(u).asarray(reset), True)[..., ::-1]
        (y, _), back1 = self.layer.apply_vjp(params["forward"], u, reset=reset, training=training)
        (z, _), back2 = self.layer.apply_vjp(params["backward"], u[..., ::-1, :], reset=flipped, training=training)

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            dforward, du, _ = back1(dy)
            dbackward, dv, _ = back2(None if dy is None else dy[..., ::-1, :])
            return {"forward": dforward, "backward": dbackward}, du + dv[..., ::-1, :], None

        return (y + z[..., ::-1, :], None), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """There is none."""
        raise ValueError("Bidirectional: a bidirectional layer has no step")
