"""The layer between sequence layers that mixes channels alone: ``y = W_down (f(W_gate u) W_up u)``."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan._arrays import Array, cotangent, namespace
from linscan.models.initial import lecun_normal
from linscan.models.layer import Layer, Params, Pullback, State, Training, affine, typed
from linscan.ops.activation import activation_vjp
from linscan.ops.dense import dense_vjp


@dataclass(frozen=True)
class FeedForward(Layer):
    """Two products with an activation, and a gate or none, between them.

    Parameters
    ----------
    channels : int
        D.
    width : int
        Of what is between.
    activation : str, default "gelu"
        f, see `linscan.ops.activation`.
    gated : bool, default True
        False: ``y = W_down f(W_up u)``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import FeedForward
    >>> layer = FeedForward(channels=4, width=12)
    >>> params = layer.init(np.random.default_rng(0))
    >>> layer.apply(params, np.ones((2, 5, 4), np.float32), 0)[1]
    {}
    """

    channels: int
    width: int
    activation: str = "gelu"
    gated: bool = True

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``up`` (what f sees first, then the gated half) and ``down``, each ``w`` and ``b``."""
        D, W = self.channels, self.width
        wide = W * (1 + self.gated)
        params = {
            "up": {"w": lecun_normal(rng, (D, wide), D), "b": np.zeros(wide)},
            "down": {"w": lecun_normal(rng, (W, D), W), "b": np.zeros(D)},
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
        """See `Layer`; a state holds nothing."""
        z, back1 = dense_vjp(u, *affine(params["up"]))
        a, back2 = activation_vjp(z[..., : self.width], self.activation)
        v = z[..., self.width :]
        y, back3 = dense_vjp(a * v if self.gated else a, *affine(params["down"]))

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            dx, *down = back3(cotangent("FeedForward", "dy", dy, y))
            dz = back2(dx * v if self.gated else dx)
            dz = namespace(dz).concatenate([dz, dx * a], -1) if self.gated else dz
            du, *up = back1(dz)
            grads = {"up": dict(zip("wb", up, strict=True)), "down": dict(zip("wb", down, strict=True))}
            return grads, du, {} if isinstance(state, dict) else None

        return (y, None if state is None else {}), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        return self.apply(params, u, state)
