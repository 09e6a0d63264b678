"""LRU: one diagonal recurrence of complex states shared by all channels.

    x[t] = λ x[t-1] + e^γ (B u[t]),  y[t] = Re(C x[t]) + D u[t],    λ = exp(-e^ν + i e^θ)

A. Orvieto et al., "Resurrecting recurrent neural networks for long sequences", 2023, arXiv:2303.06349. γ starts at
``log sqrt(1 - |λ|²)`` and is then trained freely, as in the paper's appendix; nothing is discretised, and the real part
is taken once. The paper's text ties γ to λ in one place; the appendix is followed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import scan_step
from linscan._arrays import Array, cotangent, namespace
from linscan.models.initial import complex_normal
from linscan.models.layer import Layer, Params, Pullback, State, Training, grads_like, typed
from linscan.models.recurrence import recurrence_vjp
from linscan.ops.dense import dense
from linscan.ops.ports import inlet_vjp, outlet_vjp


@dataclass(frozen=True)
class LRU(Layer):
    """A linear recurrent unit.

    Parameters
    ----------
    channels : int
        D.
    states : int, default 64
        N complex states.
    r_min, r_max : float
        ``|λ|²`` starts uniform between the squares of these.
    max_phase : float, default 2π
        The phase of λ starts uniform between 0 and this.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import LRU
    >>> layer = LRU(channels=3, states=8)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 3), np.float32), 0)
    >>> y.shape, state.shape
    ((2, 100, 3), (2, 8))
    """

    channels: int
    states: int = 64
    r_min: float = 0.0
    r_max: float = 0.99
    max_phase: float = 2 * np.pi

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``nu``, ``theta``, ``gamma`` (N,), ``B`` (N, D), ``C`` (D, N) and ``D`` (D,)."""
        D, N = self.channels, self.states
        size = rng.uniform(self.r_min**2, self.r_max**2, N)  # of |λ|²
        params = {
            "nu": np.log(-np.log(size) / 2),
            "theta": np.log(self.max_phase * rng.uniform(size=N)),
            "gamma": np.log1p(-size) / 2,
            "B": complex_normal(rng, (N, D), 1 / D),
            "C": complex_normal(rng, (D, N), 2 / N),
            "D": rng.standard_normal(D),
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
        """See `Layer`; the state is (…, N), complex."""
        xp, B = namespace(u), params["B"]
        lam, scale = self._recurrence(params)
        b, back1 = inlet_vjp(u, scale * B.T, params["D"])
        (x, final), back2 = recurrence_vjp(lam, b, state, reset, 1)
        y, back3 = outlet_vjp(x, params["C"].T, u, params["D"])

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            dy = cotangent("LRU", "dy", dy, y)
            dx, dC = back3(dy)
            dlam, db, dh0 = back2(dx, dstate)
            du, dscaled, dD = back1(db, dy)  # the second of e^γ B, turned
            dlog = lam.conj() * dlam  # of log λ = -e^ν + i e^θ
            grads = {
                "nu": -dlog.real * xp.exp(params["nu"]),
                "theta": dlog.imag * xp.exp(params["theta"]),
                "gamma": scale * (B.T.conj() * dscaled).real.sum(0),
                "B": scale[:, None] * dscaled.T,
                "C": dC.T,
                "D": dD,
            }
            return grads_like(grads, params), du, dh0

        return (y, final), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        lam, scale = self._recurrence(params)
        x = scan_step(lam, scale * dense(u, params["B"].T), state)
        return dense(x, params["C"].T, real=True) + params["D"] * u, x

    def _recurrence(self, params: Params) -> tuple[Array, Array]:
        xp = namespace(params["nu"])
        return xp.exp(1j * xp.exp(params["theta"]) - xp.exp(params["nu"])), xp.exp(params["gamma"])
