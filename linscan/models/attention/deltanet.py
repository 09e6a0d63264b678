"""DeltaNet and its relatives: matrix states in which a new value replaces what lies under its key.

    (q, k, v) = f(conv₄(W_in u)),  q and k of unit length in every head,  β = σ(W_β u), or 2 σ(W_β u)
    S[t] = α[t] (I - β[t] k[t] k[t]ᵀ) S[t-1] + β[t] k[t] v[t]ᵀ,  o = K^{-½} Sᵀ q,  y = W_out norm(o)

``gated``, Gated DeltaNet, has ``α = exp(-e^A_log softplus(W_a u + dt_bias))`` for every head (otherwise 1) and a norm
times ``silu(W_g u)``. ``negative`` lets β reach 2 and eigenvalues -1. ``n_householder`` > 1, DeltaProduct, has so many
keys, values and β a token, one after the other, the decay before the first.

S. Yang et al., "Parallelizing linear transformers with the delta rule over sequence length", 2024, arXiv:2406.06484;
S. Yang et al., "Gated delta networks", 2024, arXiv:2412.06464; R. Grazzi et al., "Unlocking state-tracking in linear
RNNs through negative eigenvalues", 2024, arXiv:2411.12537; J. Siems et al., "DeltaProduct", 2025, arXiv:2502.10297.
As in the published code values pass filter and f, a silu, like keys; outputs are scaled before their norm. Matrices
start uniform within 1 / sqrt(inputs). That code draws e^A_log from 0 on, where a head may have no decay: here
from 1 to 16.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import delta_rule_vjp
from linscan._arrays import Array, check_count, cotangent, namespace
from linscan.models.attention.delta_gates import beta_vjp, decay_vjp, init_gates
from linscan.models.attention.heads import channels, heads, in_vjp, init_in, init_out, out_vjp, unit_vjp, width
from linscan.models.layer import Layer, Params, Pullback, State, Training, typed


@dataclass(frozen=True)
class DeltaNet(Layer):
    """A delta rule for every head.

    Parameters
    ----------
    channels : int
        D.
    heads : int, default 4
        H.
    key, value : int, optional
        Width of a head's keys, K, and values, V. None means D / H.
    n_householder : int, default 1
        Steps a token.
    negative : bool, default False
        β from 0 to 2, not to 1.
    gated : bool, default False
        With decay and output gate.
    taps : int, default 4
        Of the filters; 0 means none.
    activation : str, default "silu"
        f. With "identity" keys may point anywhere, which helps to track states.
    spread : float, default 1
        W_β starts so many times as wide. At 8 a token is all but passed over by some heads and replaced, or reflected,
        by others from the start: what tracks states then hardly fades between reflections, however it is trained.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import DeltaNet
    >>> layer = DeltaNet(channels=8, heads=2, negative=True)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 8), np.float32), 0)
    >>> y.shape, state["conv"].shape, state["S"].shape
    ((2, 100, 8), (2, 3, 24), (2, 2, 4, 4))
    """

    channels: int
    heads: int = 4
    key: int | None = None
    value: int | None = None
    n_householder: int = 1
    negative: bool = False
    gated: bool = False
    taps: int = 4
    activation: str = "silu"
    spread: float = 1.0

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``W_in``, ``conv``, ``W_beta``, ``norm``, ``W_out``; if gated ``W_a``, ``A_log``, ``dt_bias`` and ``W_g``."""
        D, H, n, (q, k, v) = self.channels, self.heads, self.n_householder, self._widths
        params = init_in(rng, D, q + k + v, self.taps) | init_gates(rng, D, H, n, self.gated)
        params["W_beta"]["w"] *= self.spread
        return typed(params | init_out(rng, D, H, v // (n * H), self.gated), dtype)

    def apply_vjp(
        self,
        params: Params,
        u: Array,
        state: State = None,
        *,
        reset: Array | None = None,
        training: Training | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """See `Layer`; the state is ``{"conv": (…, 3, width of W_in), "S": (…, H, K, V)}``."""
        xp, H, n = namespace(u), self.heads, self.n_householder
        before = state if isinstance(state, dict) else {"conv": state, "S": None}
        reset = None if reset is None else xp.asarray(reset)
        (x, after), back1 = in_vjp(params, u, before.get("conv"), reset, self.activation)
        q_end, k_end = np.cumsum(self._widths[:2])
        q, back2 = unit_vjp(heads(x[..., :q_end], H))
        k, back3 = unit_vjp(heads(x[..., q_end:k_end], H, n))
        v = heads(x[..., k_end:], H, n)
        beta, back4 = beta_vjp(params, u, H, n, 1 + self.negative)
        g, back5 = decay_vjp(params, u)
        marks = None if reset is None else reset[..., None, :]
        options: Any = {"n_householder": n, "scale": q.shape[-1] ** -0.5, "reset": marks}
        (o, S), back6 = delta_rule_vjp(q, k, v, beta, g, before["S"], **options)
        y, back7 = out_vjp(params, o, u)

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            later = dstate or {}
            do, du_out, grads = back7(cotangent("DeltaNet", "dy", dy, y))
            dq, dk, dv, dbeta, dg, dS, _ = back6(do, later.get("S"))
            parts = channels(back2(dq)), channels(back3(dk), n), channels(dv, n)
            du_in, dW_in, dconv = back1(xp.concatenate(parts, -1), later.get("conv"))
            du_beta, dW_beta = back4(dbeta)
            du_decay, ddecay = back5(dg)
            grads |= dW_in | dW_beta | ddecay
            first = dconv | {"S": dS} if isinstance(state, dict) else None
            return {name: grads[name] for name in params}, du_in + du_beta + du_decay + du_out, first

        return (y, None if state is None else after | {"S": S}), pullback

    @property
    def _widths(self) -> tuple[int, int, int]:
        """Of all queries, keys and values of a token."""
        D, H, n = self.channels, self.heads, check_count("DeltaNet", "n_householder", self.n_householder, 1)
        K, V = (width("DeltaNet", name, given, D, H) for name, given in (("key", self.key), ("value", self.value)))
        return H * K, n * H * K, n * H * V
