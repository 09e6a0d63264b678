"""S4: state spaces with a diagonal plus low-rank matrix, one for each channel.

    x' = (Λ - P Pᴴ) x + B u,  y = 2 Re(C x) + D u,    Λ = -exp(A_real) + i A_imag,  N/2 modes a channel

by the bilinear rule with a step of the channel's own. Training and prediction convolve with the kernel from Cauchy
sums; a state asks for the recurrence in N real states, which gives the same. Resets run packed sequences one by one.

A. Gu, K. Goel, C. Ré, "Efficiently modeling long sequences with structured state spaces", 2021, arXiv:2111.00396. The
published code trains ``C (I - Ā^L)`` for a length L fixed at the first call, so that its parameters mean a length; here
C itself is trained, at the price of log₂ L products of N × N matrices a channel, and steps need no solve. It also clips
the imaginary part of B and keeps the conjugate modes; neither is done here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import discretize, discretize_vjp, dlsim_vjp, fft_conv_vjp, nplr, ssm_kernel_dplr_vjp
from linscan._arrays import Array, cotangent, namespace
from linscan.models.convolutional.dplr_form import back_to_modes, real_form
from linscan.models.initial import complex_normal, log_steps
from linscan.models.layer import Layer, Params, Pullback, State, Training, apart, grads_like, typed
from linscan.models.recurrence import start


@dataclass(frozen=True)
class S4(Layer):
    """A diagonal plus low-rank state space for each of D channels.

    Parameters
    ----------
    channels : int
        D.
    states : int, default 64
        N real states, which are N/2 complex modes.
    measure : str, default "legs"
        The HiPPO matrix to start from, see `linscan.nplr`.
    dt_min, dt_max : float
        The steps start log-uniform between these.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import S4
    >>> layer = S4(channels=3, states=8)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 3), np.float32), 0)
    >>> y.shape, state.shape
    ((2, 100, 3), (2, 3, 8))
    """

    channels: int
    states: int = 64
    measure: str = "legs"
    dt_min: float = 1e-3
    dt_max: float = 1e-1

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``log_dt`` (D,), ``A_real``, ``A_imag``, ``B``, ``C`` (D, N/2), ``P`` (D, R, N/2) and ``D`` (D,)."""
        Lambda, P, B, _ = nplr(self.measure, self.states)
        D, wide = self.channels, (self.channels, len(Lambda))
        params = {
            "log_dt": log_steps(rng, (D,), self.dt_min, self.dt_max),
            "A_real": np.broadcast_to(np.log(np.maximum(-Lambda.real, 1e-4)), wide),  # some measures have Re Λ = 0
            "A_imag": np.broadcast_to(Lambda.imag, wide),
            "P": np.broadcast_to(P, (D, *P.shape)),
            "B": np.broadcast_to(B, wide),
            "C": complex_normal(rng, wide),
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
        """See `Layer`; the state is (…, D, N): real parts of the modes, then imaginary parts. `reset` must be (T,)."""
        if reset is not None:
            return apart(self, params, u, state, reset, training)
        if state is not None:
            return self._recurrence_vjp(params, u, state)
        A, dt = self._continuous(params)
        P, B, C, D = (params[name] for name in "PBCD")
        k, back1 = ssm_kernel_dplr_vjp(A, P, None, B, C, dt, u.shape[-2])
        k[:, :1] += D[:, None]  # y[t] holds D u[t] if the kernel's first number holds D
        y, back2 = fft_conv_vjp(u, k.T, axis=-2)

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            du, dk, _ = back2(cotangent("S4", "dy", dy, u))
            dA, dP, _, dB, dC, ddt = back1(dk.T)
            return self._grads(params, A, dA, dP, dB, dC, dk[:1].sum(0), ddt), du, None

        return (y, None), pullback

    def _recurrence_vjp(self, params: Params, u: Array, state: State) -> tuple[tuple[Array, State], Pullback]:
        xp, D = namespace(u), params["D"]
        Lambda, dt = self._continuous(params)
        A, B, C = real_form(Lambda, params["P"], params["B"], params["C"])
        (A_bar, B_bar), back1 = discretize_vjp(A, B, dt, "bilinear")
        # dlsim's output comes before its update, y[t] = C' x[t-1] + D' u[t]: C' = C Ā, D' = C B̄ + D. One more step,
        # with no input, makes its last state the final one, for no steps as well.
        rows = xp.concatenate([u, xp.zeros_like(u[..., :1, :] if u.shape[-2] else u.sum(-2, keepdims=True))], -2)
        system = A_bar, B_bar, C @ A_bar, C @ B_bar + D[:, None, None], 1.0
        x0 = start(state, (*u.shape[:-2], *A.shape[:-1]), D)
        back2: Any
        (y, x), back2 = dlsim_vjp(system, rows.swapaxes(-1, -2)[..., None], x0=x0)
        y, final = y[..., :-1, 0].swapaxes(-1, -2), x[..., -1, :].copy()

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            g, dx = xp.zeros_like(rows), xp.zeros_like(x)
            g[..., :-1, :] = cotangent("S4", "dy", dy, y)
            dx[..., -1, :] = cotangent("S4", "dstate", dstate, final)
            (dA_bar, dB_bar, dCA, dCB, _), du, dx0 = back2(g.swapaxes(-1, -2)[..., None], dx)
            dC = dCA @ A_bar.swapaxes(-1, -2) + dCB @ B_bar.swapaxes(-1, -2)
            Ct = C.swapaxes(-1, -2)
            dA, dB, ddt = back1(dA_bar + Ct @ dCA, dB_bar + Ct @ dCB)
            dLambda, dP, dB, dC = back_to_modes(params["P"], dA, dB, dC)
            grads = self._grads(params, Lambda, dLambda, dP, dB, dC, dCB[:, 0, 0], ddt)
            return grads, du[..., 0].swapaxes(-1, -2)[..., :-1, :], None if isinstance(state, int) else dx0

        return (y, final), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        Lambda, dt = self._continuous(params)
        A, B, C = real_form(Lambda, params["P"], params["B"], params["C"])
        A_bar, B_bar = discretize(A, B, dt, "bilinear")
        x: Any = start(state, (*u.shape, self.states), u)
        x = (A_bar @ x[..., None] + B_bar * u[..., None, None])[..., 0]
        return (C[:, 0] * x).sum(-1) + params["D"] * u, x

    def _continuous(self, params: Params) -> tuple[Array, Array]:
        xp = namespace(params["D"])
        return 1j * params["A_imag"] - xp.exp(params["A_real"]), xp.exp(params["log_dt"])

    def _grads(self, params: Params, A: Array, dA: Array, dP: Any, dB: Any, dC: Any, dD: Any, ddt: Any) -> Params:
        named = {"A_real": dA.real * A.real, "A_imag": dA.imag, "P": dP, "B": dB, "C": dC, "D": dD}
        return grads_like(named | {"log_dt": ddt * namespace(ddt).exp(params["log_dt"])}, params)
