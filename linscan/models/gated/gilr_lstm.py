"""GILR-LSTM: an LSTM whose gates see a gated linear recurrence instead of its own output.

    g = σ(U u + b),  h[t] = g[t] h[t-1] + (1 - g[t]) tanh(V u + c)
    (f, i, o, z) = (σ, σ, σ, tanh) of W (h, u) + d
    c[t] = f[t] c[t-1] + i[t] z[t],  y = o c

Both recurrences are linear in their states, and so scans.

E. Martin, C. Cundy, "Parallelizing linear recurrent neural nets over sequence length", 2017, arXiv:1709.04057. The
paper's gates see h[t-1], its published code h[t]. The code is followed, with which the paper's figures were made, and
so is its start: uniform within 0.05 of 0, and a bias of 5 for the forget gate. There is no tanh on c, in either.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscan import scan_step
from linscan._arrays import Array, cotangent, namespace
from linscan.models.layer import Layer, Params, Pullback, State, Training, affine, typed
from linscan.models.recurrence import recurrence_vjp
from linscan.ops.activation import sigmoid
from linscan.ops.dense import dense, dense_vjp


@dataclass(frozen=True)
class GILRLSTM(Layer):
    """A GILR-LSTM layer, as wide as its input.

    Parameters
    ----------
    channels : int
        D.
    forget : float, default 5
        What the bias of the forget gate starts at.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import GILRLSTM
    >>> layer = GILRLSTM(channels=3)
    >>> params = layer.init(np.random.default_rng(0))
    >>> y, state = layer.apply(params, np.ones((2, 100, 3), np.float32), 0)
    >>> y.shape, state["h"].shape, state["c"].shape
    ((2, 100, 3), (2, 3), (2, 3))
    """

    channels: int
    forget: float = 5.0

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """``gilr`` (U, V) and ``lstm`` (f, i, o, z), each ``w`` and ``b``."""
        D = self.channels
        params = {
            "gilr": {"w": rng.uniform(-0.05, 0.05, (D, 2 * D)), "b": np.zeros(2 * D)},
            "lstm": {"w": rng.uniform(-0.05, 0.05, (2 * D, 4 * D)), "b": np.repeat([self.forget, 0.0], [D, 3 * D])},
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
        """See `Layer`; the state is ``{"h": (…, D), "c": (…, D)}``."""
        xp, D = namespace(u), self.channels
        before = state if isinstance(state, dict) else {"h": state, "c": state}
        p, back1 = dense_vjp(u, *affine(params["gilr"]))
        g, x = self._first(p)
        (h, h_last), back2 = recurrence_vjp(g, (1 - g) * x, before["h"], reset, 1)
        q, back3 = dense_vjp(xp.concatenate([h, u], -1), *affine(params["lstm"]))
        f, i, o, z = self._second(q)
        (c, c_last), back4 = recurrence_vjp(f, i * z, before["c"], reset, 1)
        y = o * c

        def pullback(dy: Array | None, dstate: State = None) -> tuple[Params, Array, State]:
            after = dstate or {"h": None, "c": None}
            dy = cotangent("GILRLSTM", "dy", dy, y)
            df, diz, dc0 = back4(dy * o, after["c"])
            dq = [df * f * (1 - f), diz * z * i * (1 - i), dy * c * o * (1 - o), diz * i * (1 - z * z)]
            dhu, *lstm = back3(xp.concatenate(dq, -1))
            dg, dx, dh0 = back2(dhu[..., :D], after["h"])
            dp = [(dg - dx * x) * g * (1 - g), dx * (1 - g) * (1 - x * x)]
            du, *gilr = back1(xp.concatenate(dp, -1))
            grads = {"gilr": dict(zip("wb", gilr, strict=True)), "lstm": dict(zip("wb", lstm, strict=True))}
            return grads, du + dhu[..., D:], {"h": dh0, "c": dc0} if isinstance(state, dict) else None

        return (y, None if state is None else {"h": h_last, "c": c_last}), pullback

    def step(self, params: Params, u: Array, state: State) -> tuple[Array, State]:
        """One time of u, (…, D)."""
        before = state if isinstance(state, dict) else {"h": state, "c": state}
        g, x = self._first(dense(u, *affine(params["gilr"])))
        h = scan_step(g, (1 - g) * x, before["h"])
        f, i, o, z = self._second(dense(namespace(u).concatenate([h, u], -1), *affine(params["lstm"])))
        c = scan_step(f, i * z, before["c"])
        return o * c, {"h": h, "c": c}

    def _first(self, p: Array) -> tuple[Array, Array]:
        return sigmoid(p[..., : self.channels]), namespace(p).tanh(p[..., self.channels :])

    def _second(self, q: Array) -> tuple[Array, ...]:
        n = 3 * self.channels
        gates = sigmoid(q[..., :n])
        return *(gates[..., j : j + self.channels] for j in range(0, n, self.channels)), namespace(q).tanh(q[..., n:])
