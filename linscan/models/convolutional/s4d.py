"""S4D: diagonal state spaces, one for each channel.

    x' = A x + B u,  y = 2 Re(C x) + D u,    A = -exp(A_real) + i A_imag,  (N/2) complex modes a channel

discretised with a step of the channel's own. Training and prediction convolve with the kernel ``2 Re Σ C B w ā^l``; a
state or a reset asks for the recurrence, which gives the same.

A. Gu, A. Gupta, K. Goel, C. Ré, "On the parameterization and initialization of diagonal state space models", 2022,
arXiv:2206.11893. Paper and published code differ: the code lets every channel have its own A and keeps Im A ≤ 0 (here
≥ 0; the kernels are conjugates of each other's, so real parts are equal), and takes twice the real part for the real
initialisation too, where here the N real modes are summed once. B is trained, as in the code.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import diagonal_init, discretize_diag, discretize_diag_vjp, fft_conv_vjp, scan_step, ssm_kernel_vjp
from linscan._arrays import Array, cotangent, namespace, sum_rows
from linscan.models.initial import complex_normal, log_steps
from linscan.models.layer import Layer, Params, Pullback, State, Training, grads_like, typed
from linscan.models.recurrence import recurrence_vjp


@dataclass(frozen=True)
class S4D(Layer):
    """A diagonal state space for each of D channels.

    Parameters
    ----------
    channels : int
        D.
    states : int, default 64
        N real states, which are N/2 complex modes (N real ones for ``kind="real"``).
    kind : {"lin", "inv", "inv2", "quad", "legs", "real", "dss"}
        Initialisation, see `linscan.diagonal_init`.
    method : str, default "zoh"
        See `linscan.discretize_diag`; with two weights only.
    dt_min, dt_max : float
        The steps start log-uniform between these.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import S4D
    >>> layer = S4D(channels=3, states=8)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 3), np.float32), 0)
    >>> y.shape, state.shape
    ((2, 100, 3), (2, 3, 4))
    """

    channels: int
    states: int = 64
    kind: str = "lin"
    method: str = "zoh"
    dt_min: float = 1e-3
    dt_max: float = 1e-1

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``log_dt`` (D,), ``A_real``, ``A_imag``, ``B``, ``C`` (D, N/2) and ``D`` (D,)."""
        A, B = diagonal_init(self.kind, self.states)
        wide = (self.channels, len(A))
        C = complex_normal(rng, wide)
        params = {
            "log_dt": log_steps(rng, (self.channels,), self.dt_min, self.dt_max),
            "A_real": np.broadcast_to(np.log(-A.real), wide),
            "A_imag": np.broadcast_to(A.imag, wide),
            "B": np.broadcast_to(B, wide),
            "C": C if self.kind != "real" else np.sqrt(2) * C.real,
            "D": rng.standard_normal(self.channels),
        }
        if self.kind == "real":
            del params["A_imag"]
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
        """See `Layer`; the state is (…, D, N/2), complex unless ``kind="real"``."""
        (A, dt), C, B, D = self._continuous(params), params["C"], params["B"], params["D"]
        (a, w), back1 = discretize_diag_vjp(A, dt, self.method)
        back2: Any
        final: State = None
        if recurrent := state is not None or reset is not None:
            (x, final), back2 = recurrence_vjp(a, w * B * u[..., None], state, reset, 2)
            y = self._sum(C, x) + D * u
        else:
            k, back2 = ssm_kernel_vjp(a, self._pairs * C * B * w, u.shape[-2])
            k[:, :1] += D[:, None]  # y[t] holds D u[t] if the kernel's first number holds D
            y, back3 = fft_conv_vjp(u, k.T, axis=-2)

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            dy, dh0 = cotangent("S4D", "dy", dy, y), None
            if recurrent:  # y = Σ C x, and b = w B u feeds x
                g = self._pairs * dy[..., None]
                da, db, dh0 = back2(g * C.conj(), dstate)
                du, dD = (db * (w * B).conj()).sum(-1).real + D * dy, sum_rows(dy * u)
                dC, dwB = sum_rows(g * x.conj(), 2), sum_rows(db * u[..., None], 2)
            else:
                du, dk, _ = back3(dy)
                dD = dk[:1].sum(0)
                da, dc = back2(dk.T)
                dC, dwB = self._pairs * (B * w).conj() * dc, self._pairs * C.conj() * dc
            dA, ddt = back1(da, B.conj() * dwB)
            grads = {
                "log_dt": (ddt * dt)[:, 0],
                "A_real": dA.real * A.real,  # A = -exp(A_real) + i A_imag
                "A_imag": dA.imag,
                "B": w.conj() * dwB,
                "C": dC,
                "D": dD,
            }
            return grads_like(grads, params), du, dh0

        return (y, final), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        a, w = discretize_diag(*self._continuous(params), self.method)
        b = w * params["B"] * u[..., None]
        x = scan_step(a, b, state)
        return self._sum(params["C"], x) + params["D"] * u, x

    @property
    def _pairs(self) -> int:
        return 1 if self.kind == "real" else 2

    def _sum(self, C: Array, x: Array) -> Array:
        return self._pairs * (C * x).sum(-1).real

    def _continuous(self, params: Params) -> tuple[Array, Array]:
        xp = namespace(params["C"])
        A = -xp.exp(params["A_real"])
        return A + 1j * params["A_imag"] if "A_imag" in params else A, xp.exp(params["log_dt"])[:, None]
