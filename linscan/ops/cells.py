"""Cells of nonlinear recurrences: what one step does to the state of a channel, and its gradient.

A cell is elementwise in channels; what couples channels is the matrix product ``y = R u(s) + b`` made outside of it. So
a cell states how ``(x, y, s, w)`` become the next state, and the pullback of that; loops over time, matrices and their
gradients are `linscan.rnn_scan`'s. Arrays: ``x, y (…, G, d)`` for G gates, ``s (…, S, d)`` for S states, of which the
first is the output, ``w (…, W, d)`` (None where W is 0). The cells with input gates are in `gated_cells`.
"""

from typing import Any

from linscan._arrays import Array, check_count, namespace


class Cell:
    """A cell of `linscan.rnn_scan` and `linscan.newton_scan`: subclass it and give `step` and `step_vjp`.

    Parameters
    ----------
    diagonal : bool, optional
        Whether each gate's recurrent matrix is diagonal: R is then ``(…, G, d)`` instead of ``(…, G, d, d)``, and
        channels are independent. None means what the class says.

    Attributes
    ----------
    gates, states, weights : int
        G, S and W: rows of the input, of the state and of the elementwise weights.
    start : tuple of float
        The state where none is given, one number per row; None means zero.

    Examples
    --------
    A cell of one's own, ``h[t] = sin(x[t] + R h[t-1])``:

    >>> import numpy as np
    >>> from linscan import rnn_scan
    >>> from linscan.ops.cells import Cell
    >>> class Sine(Cell):
    ...     def step(self, x, y, s, w):
    ...         return np.sin(x + y)
    ...     def step_vjp(self, x, y, s, w, ds):
    ...         dx = np.cos(x + y) * ds
    ...         return dx, dx, np.zeros_like(s), None
    >>> h, state = rnn_scan(Sine(), np.ones((3, 1, 1)), np.full((1, 1, 1), 0.5))
    >>> h.ravel()
    array([0.84147098, 0.98876199, 0.99708177])
    """

    name: str | None = None  # what `linscan.rnn_scan` calls it, and the engines with a loop of their own for it
    gates = 1
    states = 1
    weights = 0
    start: tuple[float, ...] | None = None
    diagonal = False

    def __init__(self, diagonal: bool | None = None) -> None:
        if diagonal is not None:
            self.diagonal = bool(diagonal)

    def step(self, x: Array, y: Array, s: Array, w: Any) -> Array:
        """The state after the step."""
        raise NotImplementedError

    def step_vjp(self, x: Array, y: Array, s: Array, w: Any, ds: Array) -> tuple[Array, Array, Array, Array | None]:
        """Gradients of x, y, s and w, where `ds` is that of the state after the step."""
        raise NotImplementedError

    def feed(self, s: Array) -> Array:
        """What R multiplies, ``(…, d)``."""
        return s[..., 0, :]

    def feed_vjp(self, s: Array, du: Array) -> Array:
        """The gradient of the state where `du` is that of `feed`."""
        ds = namespace(s).zeros_like(s)
        ds[..., 0, :] = du
        return ds

    def product(self, R: Array, b: Array | None, s: Array) -> Array:
        """``y = R u(s) + b``, (…, G, d)."""
        u = self.feed(s)[..., None, :]
        y = R * u if self.diagonal else namespace(R).matmul(R, u[..., None])[..., 0]
        return y if b is None else y + b

    def product_vjp(self, R: Array, s: Array, dy: Array) -> Array:
        """The gradient of the state where `dy` is that of `product`."""
        du = R * dy if self.diagonal else namespace(R).matmul(dy[..., None, :], R)[..., 0, :]
        return self.feed_vjp(s, du.sum(axis=-2))


class Elman(Cell):
    """``h' = tanh(x + y)``."""

    name = "elman"

    def step(self, x: Array, y: Array, s: Array, w: Any) -> Array:
        """See `Cell.step`."""
        return namespace(x).tanh(x + y)

    def step_vjp(self, x: Array, y: Array, s: Array, w: Any, ds: Array) -> Any:
        """See `Cell.step_vjp`."""
        xp = namespace(x)
        dx = (1 - xp.tanh(x + y) ** 2) * ds
        return dx, dx, xp.zeros_like(ds), None


class Leaky(Cell):
    """``h' = (1 - w) h + w tanh(x + y)`` with the rate w in (0, 1]: a leaky integrator, an echo-state unit."""

    name = "leaky"
    weights = 1

    def step(self, x: Array, y: Array, s: Array, w: Any) -> Array:
        """See `Cell.step`."""
        return (1 - w) * s + w * namespace(x).tanh(x + y)

    def step_vjp(self, x: Array, y: Array, s: Array, w: Any, ds: Array) -> Any:
        """See `Cell.step_vjp`."""
        n = namespace(x).tanh(x + y)
        dx = (1 - n * n) * w * ds
        return dx, dx, (1 - w) * ds, (n - s) * ds


class AlmostLinear(Cell):
    """``z' = w z + x + y`` where R multiplies z with a ReLU on its last units: the almost-linear RNN.

    Parameters
    ----------
    relu : int, optional
        How many of a head's channels, the last ones, go through the ReLU; None means all (a piecewise linear RNN).
    diagonal : bool, default False
        See `Cell`.

    References
    ----------
    .. [1] M. Brenner et al., "Almost-linear RNNs yield highly interpretable symbolic codes in dynamical systems
       reconstruction", 2024, arXiv:2410.14240.
    """

    name = "almost_linear"
    weights = 1

    def __init__(self, relu: int | None = None, diagonal: bool | None = None) -> None:
        super().__init__(diagonal)
        self.relu = None if relu is None else check_count("AlmostLinear", "relu", relu)

    def step(self, x: Array, y: Array, s: Array, w: Any) -> Array:
        """See `Cell.step`."""
        return w * s + (x + y)

    def step_vjp(self, x: Array, y: Array, s: Array, w: Any, ds: Array) -> Any:
        """See `Cell.step_vjp`."""
        return ds, ds, w * ds, s * ds

    def linear(self, width: int) -> int:
        """How many of a head's channels come before those with a ReLU."""
        return 0 if self.relu is None else max(0, width - self.relu)

    def feed(self, s: Array) -> Array:
        """See `Cell.feed`."""
        xp, z = namespace(s), s[..., 0, :]
        n = self.linear(z.shape[-1])
        return xp.maximum(z, 0) if n == 0 else xp.concatenate([z[..., :n], xp.maximum(z[..., n:], 0)], axis=-1)

    def feed_vjp(self, s: Array, du: Array) -> Array:
        """See `Cell.feed_vjp`; at zero the ReLU's slope is 0."""
        xp = namespace(s)
        passes = (s[..., 0, :] > 0) | (xp.arange(s.shape[-1]) < self.linear(s.shape[-1]))
        return xp.where(passes, du, 0)[..., None, :]
