"""S5: one diagonal state space with many inputs and outputs.

    x' = Λ x + B u,  y = 2 Re(C x) + D u,    P/2 complex states, discretised with a step for each

run as a scan; bidirectional, a second scan of the same states runs backwards and C reads both.

J. T. H. Smith, A. Warrington, S. W. Linderman, "Simplified state space layers for sequence modeling", 2022,
arXiv:2208.04933. Λ starts as the normal part of HiPPO-LegS, one matrix for each of `blocks`, of every conjugate pair
one. Published code is followed where it is more definite than the paper: Λ is kept as its two parts and may grow
unstable; what it calls ``trunc_standard_normal`` draws C row by row with variance 1/P (here "rows"), while its
``lecun_normal`` counts all D P entries as inputs and draws a C that is √D times smaller. B is drawn for D inputs; that
code counts P of them, which makes it √(D/P) times larger.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import discretize_diag, discretize_diag_vjp, nplr, scan_step
from linscan._arrays import Array, check_choice, cotangent, namespace
from linscan.models.initial import complex_normal, lecun_normal, log_steps
from linscan.models.layer import Layer, Params, Pullback, State, Training, grads_like, typed
from linscan.models.recurrence import recurrence_vjp
from linscan.ops.dense import dense
from linscan.ops.ports import inlet_vjp, outlet_vjp
from linscan.ops.two_way import two_way_vjp


@dataclass(frozen=True)
class S5(Layer):
    """A state space with D inputs and outputs.

    Parameters
    ----------
    channels : int
        D.
    states : int, default 64
        P real states, which are P/2 complex ones.
    blocks : int, default 1
        HiPPO matrices that Λ starts from; they have ``states / blocks`` states each, an even number.
    bidirectional : bool, default False
        Read the future too. There is then no state and no step.
    method : str, default "zoh"
        See `linscan.discretize_diag`; with two weights only.
    C_init : {"rows", "lecun_normal", "complex_normal"}
        See above; the last has variance 1.
    dt_min, dt_max : float
        The steps start log-uniform between these.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import S5
    >>> layer = S5(channels=3, states=16, blocks=2, bidirectional=True)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, _ = layer.apply(params, np.ones((2, 100, 3), np.float32))
    >>> y.shape, params["C"].shape
    ((2, 100, 3), (3, 16))
    """

    channels: int
    states: int = 64
    blocks: int = 1
    bidirectional: bool = False
    method: str = "zoh"
    C_init: str = "rows"
    dt_min: float = 1e-3
    dt_max: float = 1e-1

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``Lambda_re``, ``Lambda_im``, ``log_dt`` (P/2,), ``B`` (P/2, D), ``C`` (D, P/2 or two ways P), ``D`` (D,)."""
        D, P = self.channels, self.states
        if P % (2 * self.blocks):
            raise ValueError(f"S5: states must be an even number for each of {self.blocks} blocks; got {P}")
        Lambda, _, _, V = nplr("legs", P // self.blocks)
        V = np.kron(np.eye(self.blocks), V)  # (P, P/2)
        sides = [self._draw_C(rng) @ V for _ in range(1 + self.bidirectional)]
        params = {
            "Lambda_re": np.tile(Lambda.real, self.blocks),
            "Lambda_im": np.tile(Lambda.imag, self.blocks),
            "log_dt": log_steps(rng, (P // 2,), self.dt_min, self.dt_max),
            "B": V.conj().T @ lecun_normal(rng, (P, D), D),
            "C": np.concatenate(sides, -1),
            "D": rng.standard_normal(D),
        }
        return typed(params, dtype)

    def _draw_C(self, rng: np.random.Generator) -> np.ndarray:
        check_choice("S5", "C_init", self.C_init, ("rows", "lecun_normal", "complex_normal"))
        shape = (self.channels, self.states)
        if self.C_init == "complex_normal":
            return complex_normal(rng, shape)
        fan = self.states * (self.channels if self.C_init == "lecun_normal" else 1)
        return lecun_normal(rng, shape, fan) + 1j * lecun_normal(rng, shape, fan)

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; the state is (…, P/2), complex."""
        if self.bidirectional and state is not None:
            raise ValueError("S5: a bidirectional layer has no state")
        Lambda, dt = self._continuous(params)
        (a, w), back1 = discretize_diag_vjp(Lambda, dt, self.method)
        B_bar = w[:, None] * params["B"]
        Bu, back2 = inlet_vjp(u, B_bar.T, params["D"])
        back3: Any
        if self.bidirectional:
            (x, back3), final = two_way_vjp(a, Bu, reset), None
        else:
            (x, final), back3 = recurrence_vjp(a, Bu, state, reset, 1)
        y, back4 = outlet_vjp(x, 2 * params["C"].T, u, params["D"])

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            dy = cotangent("S5", "dy", dy, y)
            dx, dC = back4(dy)
            da, db, dh0 = (*back3(dx), None) if self.bidirectional else back3(dx, dstate)
            du, dB_bar, dD = back2(db, dy)
            dLambda, ddt = back1(da, (params["B"].conj() * dB_bar.T).sum(-1))
            grads = {
                "Lambda_re": dLambda.real,
                "Lambda_im": dLambda.imag,
                "log_dt": ddt * dt,
                "B": w.conj()[:, None] * dB_bar.T,
                "C": 2 * dC.T,
                "D": dD,
            }
            return grads_like(grads, params), du, dh0

        return (y, final), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        if self.bidirectional:
            raise ValueError("S5: a bidirectional layer has no step")
        a, w = discretize_diag(*self._continuous(params), self.method)
        x = scan_step(a, w * dense(u, params["B"].T), state)
        return dense(x, 2 * params["C"].T, real=True) + params["D"] * u, x

    def _continuous(self, params: Params) -> tuple[Array, Array]:
        return params["Lambda_re"] + 1j * params["Lambda_im"], namespace(params["D"]).exp(params["log_dt"])
