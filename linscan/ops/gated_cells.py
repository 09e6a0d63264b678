"""Gated cells: LSTMs, GRUs and their relatives, elementwise; see `cells` for what a cell is."""

from typing import Any

from linscan import _arrays
from linscan._arrays import Array, namespace
from linscan.ops.activation import sigmoid
from linscan.ops.cells import AlmostLinear, Cell, Elman, Leaky


class LSTM(Cell):
    """``c' = σ(f) c + σ(i) tanh(z)``, ``h' = σ(o) tanh(c')``; gates (i, f, z, o), states (h, c).

    References
    ----------
    .. [1] S. Hochreiter and J. Schmidhuber, "Long short-term memory", 1997, doi:10.1162/neco.1997.9.8.1735.
    """

    name = "lstm"
    gates = 4
    states = 2

    def _forward(self, x: Array, y: Array, s: Array, w: Any) -> tuple[Array, ...]:
        xp, g, c = namespace(x), _rows(x + y), s[..., 1, :]
        i, f = sigmoid(_add(g[0], w, 0, c)), sigmoid(_add(g[1], w, 1, c))
        z = xp.tanh(g[2])
        new = f * c + i * z
        return i, f, z, sigmoid(_add(g[3], w, 2, new)), new, xp.tanh(new)

    def step(self, x: Array, y: Array, s: Array, w: Any) -> Array:
        """See `Cell.step`."""
        *_, o, c, t = self._forward(x, y, s, w)
        return _stack(o * t, c)

    def step_vjp(self, x: Array, y: Array, s: Array, w: Any, ds: Array) -> Any:
        """See `Cell.step_vjp`."""
        i, f, z, o, new, t = self._forward(x, y, s, w)
        (dh, dc), c = _rows(ds), s[..., 1, :]
        do = dh * t * o * (1 - o)
        dc = _add(dc + dh * o * (1 - t * t), w, 2, do)
        di, df, dz = dc * z * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - z * z)
        dx = _stack(di, df, dz, do)
        back = _add(_add(dc * f, w, 0, di), w, 1, df)
        return dx, dx, _stack(0 * back, back), None if w is None else _stack(di * c, df * c, do * new)


class PeepholeLSTM(LSTM):
    """An LSTM whose gates see the cell: ``w_i c`` and ``w_f c`` before the step, ``w_o c'`` after it; w is (i, f, o).

    References
    ----------
    .. [1] F. A. Gers, N. N. Schraudolph and J. Schmidhuber, "Learning precise timing with LSTM recurrent networks",
       Journal of Machine Learning Research 3, 2002.
    """

    name = "peephole_lstm"
    weights = 3


class ParaLSTM(Cell):
    """``c' = f c + (1 - f) tanh(z)``, ``h' = o tanh(c')`` with ``f = σ(f̃ + w_f c)``, ``o = σ(õ + w_o c')``.

    Gates (f, z, o), states (h, c), w is (f, o), and R is diagonal: its Jacobians are 2 × 2 blocks.

    References
    ----------
    .. [1] F. Danieli et al., "ParaRNN: unlocking parallel training of nonlinear RNNs for large language models", 2025,
       arXiv:2510.21450.
    """

    name = "para_lstm"
    gates = 3
    states = 2
    weights = 2
    diagonal = True

    def _forward(self, x: Array, y: Array, s: Array, w: Any) -> tuple[Array, ...]:
        xp, g, c = namespace(x), _rows(x + y), s[..., 1, :]
        f, z = sigmoid(_add(g[0], w, 0, c)), xp.tanh(g[1])
        new = f * c + (1 - f) * z
        return f, z, sigmoid(_add(g[2], w, 1, new)), new, xp.tanh(new)

    def step(self, x: Array, y: Array, s: Array, w: Any) -> Array:
        """See `Cell.step`."""
        *_, o, c, t = self._forward(x, y, s, w)
        return _stack(o * t, c)

    def step_vjp(self, x: Array, y: Array, s: Array, w: Any, ds: Array) -> Any:
        """See `Cell.step_vjp`."""
        f, z, o, new, t = self._forward(x, y, s, w)
        (dh, dc), c = _rows(ds), s[..., 1, :]
        do = dh * t * o * (1 - o)
        dc = _add(dc + dh * o * (1 - t * t), w, 1, do)
        df, dz = dc * (c - z) * f * (1 - f), dc * (1 - f) * (1 - z * z)
        dx, back = _stack(df, dz, do), _add(dc * f, w, 0, df)
        return dx, dx, _stack(0 * back, back), _stack(df * c, do * new)


class GRU(Cell):
    """``n = tanh(x_n + σ(r) y_n)``, ``h' = σ(z) h + (1 - σ(z)) n``; gates (r, z, n).

    References
    ----------
    .. [1] K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
       translation", 2014, arXiv:1406.1078.
    """

    name = "gru"
    gates = 3
    sign = 1  # of z's argument: σ(-z) = 1 - σ(z)

    def _forward(self, x: Array, y: Array) -> tuple[Array, ...]:
        r, z, y_n = sigmoid(x[..., 0, :] + y[..., 0, :]), x[..., 1, :] + y[..., 1, :], y[..., 2, :]
        return r, sigmoid(self.sign * z), namespace(x).tanh(x[..., 2, :] + r * y_n), y_n

    def step(self, x: Array, y: Array, s: Array, w: Any) -> Array:
        """See `Cell.step`."""
        _, keep, n, _ = self._forward(x, y)
        return (keep * s[..., 0, :] + (1 - keep) * n)[..., None, :]

    def step_vjp(self, x: Array, y: Array, s: Array, w: Any, ds: Array) -> Any:
        """See `Cell.step_vjp`."""
        r, keep, n, y_n = self._forward(x, y)
        dh = ds[..., 0, :]
        dn = dh * (1 - keep) * (1 - n * n)
        dr = dn * y_n * r * (1 - r)
        dz = self.sign * dh * (s[..., 0, :] - n) * keep * (1 - keep)
        return _stack(dr, dz, dn), _stack(dr, dz, dn * r), (dh * keep)[..., None, :], None


class ParaGRU(GRU):
    """``h' = σ(z) n + (1 - σ(z)) h`` with ``n = tanh(x_n + σ(r) y_n)`` and diagonal R; gates (r, z, n).

    References
    ----------
    .. [1] F. Danieli et al., "ParaRNN: unlocking parallel training of nonlinear RNNs for large language models", 2025,
       arXiv:2510.21450.
    """

    name = "para_gru"
    sign = -1
    diagonal = True


class SLSTM(Cell):
    """xLSTM's scalar cell, ``h' = σ(o) c / n`` with ``c' = σ(f) c + e^i tanh(z)`` and ``n' = σ(f) n + e^i``.

    Gates (i, f, z, o), states (h, r, l) with the running mean ``r = c / n`` and ``l = log n``, which need no
    stabiliser: neither overflows. At the start l is -inf.

    References
    ----------
    .. [1] M. Beck et al., "xLSTM: extended long short-term memory", 2024, arXiv:2405.04517.
    """

    name = "slstm"
    gates = 4
    states = 3
    start = (0.0, 0.0, -float("inf"))

    # With p = e^i / n', the new input's share of the mean:  r' = r + p (tanh z - r),  n' = σ(f) n + e^i.

    def _forward(self, x: Array, y: Array, s: Array) -> tuple[Array, ...]:
        xp, g, r = namespace(x), _rows(x + y), s[..., 1, :]
        kept = s[..., 2, :] - xp.logaddexp(0, -g[1])
        p, z = sigmoid(g[0] - kept), xp.tanh(g[2])
        return p, z, sigmoid(g[3]), r + p * (z - r), xp.logaddexp(kept, g[0]), g[1]

    def step(self, x: Array, y: Array, s: Array, w: Any) -> Array:
        """See `Cell.step`."""
        _, _, o, r, log_n, _ = self._forward(x, y, s)
        return _stack(o * r, r, log_n)

    def step_vjp(self, x: Array, y: Array, s: Array, w: Any, ds: Array) -> Any:
        """See `Cell.step_vjp`."""
        p, z, o, new, _, f = self._forward(x, y, s)
        dh, dr, dl = _rows(ds)
        dr = dr + dh * o
        di = dr * (z - s[..., 1, :]) * p * (1 - p) + dl * p
        dkept = dl - di  # i and l + log σ(f) shift n' together: their gradients add up to that of log n'
        dx = _stack(di, dkept * sigmoid(-f), dr * p * (1 - z * z), dh * new * o * (1 - o))
        return dx, dx, _stack(0 * dr, dr * (1 - p), dkept), None


def _rows(x: Array) -> list[Array]:
    return [x[..., i, :] for i in range(x.shape[-2])]


def _stack(*rows: Array) -> Array:
    return namespace(rows[0]).stack(rows, axis=-2)


def _add(g: Array, w: Any, row: int, c: Array) -> Array:
    """`g` with a peephole's share, where there is one."""
    return g if w is None else g + w[..., row, :] * c


CELLS: dict[str, type[Cell]] = {
    str(cell.name): cell for cell in (Elman, LSTM, GRU, SLSTM, PeepholeLSTM, Leaky, AlmostLinear, ParaGRU, ParaLSTM)
}


def cell_of(who: str, cell: Any) -> Cell:
    """The cell of this name, or `cell` itself."""
    if isinstance(cell, str):
        return CELLS[_arrays.check_choice(who, "cell", cell, tuple(CELLS))]()
    if not isinstance(cell, Cell):
        raise TypeError(f"{who}: cell must be a name or a linscan.ops.cells.Cell; got {type(cell).__name__}")
    return cell
