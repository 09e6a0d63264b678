"""AdamW, Adam and SGD on flat dictionaries of arrays, in place, with groups of parameters by name.

A complex parameter is optimised as its two real parts. Running statistics (``mean`` and ``var``) are never touched.
"""

from dataclasses import dataclass
from typing import Any

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick

# What a recurrence is made of: trained slowly, and not pulled towards zero, in all the papers of the S4 family.
RECURRENT = (
    *("log_dt", "A_real", "A_imag", "P", "Lambda_re", "Lambda_im"),
    *("nu", "theta", "gamma", "rho", "frequency"),
    *("A_log", "dt_bias", "time_decay", "time_first"),
)
_FIXED = ("mean", "var")


@dataclass(frozen=True)
class Group:
    """Parameters with these last names: their own learning rate and weight decay.

    Parameters
    ----------
    names : tuple of str
        Last names, ``"log_dt"`` for ``block0.layer.log_dt``.
    rate : float, optional
        Learning rate. None means the optimiser's.
    decay : float, default 0
        Weight decay.
    """

    names: tuple[str, ...]
    rate: float | None = None
    decay: float = 0.0


@dataclass(frozen=True)
class _Optimiser:
    rate: float = 1e-3
    decay: float = 0.0
    groups: tuple[Group, ...] = (Group(RECURRENT),)

    slots: tuple[str, ...] = ()

    def kind(self, name: str) -> Group | None:
        """How the parameter `name` is treated; None if it is not trained."""
        last = name.rsplit(".", 1)[-1]
        if last in _FIXED:
            return None
        return next((g for g in self.groups if last in g.names), Group((), None, self.decay))

    def start(self, params: dict[str, Array]) -> dict[str, dict[str, Array]]:
        """Zeroed moments by slot and parameter."""
        return {slot: {n: _arrays.namespace(x).zeros_like(x) for n, x in params.items()} for slot in self.slots}

    def update(
        self,
        params: dict[str, Array],
        grads: dict[str, Array],
        moments: dict[str, Any],
        step: int,
        factor: float,
        share: Any = 1.0,
    ) -> None:
        """One step, the first of which is 1, in place; learning rates are multiplied by `factor`, gradients by `share`.

        `share` may be an array of no axes where the parameters live: then nothing waits for it.
        """
        for name, x in params.items():
            group = self.kind(name)
            if group is None:
                continue
            rate = factor * (self.rate if group.rate is None else group.rate)
            xp = _arrays.namespace(x)
            real = _arrays.real_dtype(x.dtype)
            arrays = [x, xp.ascontiguousarray(grads[name], x.dtype), *(moments[slot][name] for slot in self.slots)]
            views = [a.view(real) if a.ndim else a[None].view(real) for a in arrays]
            self._move(*views, xp.asarray(share, _arrays.accum_dtype(real)), step, rate, group.decay)

    def _move(self, *args: Any) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class AdamW(_Optimiser):
    """Adam with weight decay beside the gradient's step, arXiv:1711.05101.

    Parameters
    ----------
    rate : float, default 1e-3
        Learning rate.
    decay : float, default 0.01
        Weight decay, multiplied by the learning rate; of the parameters in no group.
    groups : tuple of Group
        By default, one without decay for what recurrences are made of.
    betas : tuple of float, default (0.9, 0.999)
        How much of the mean of gradients and of their squares stays at every step.
    eps : float, default 1e-8
        Added to the root.
    """

    decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    slots: tuple[str, ...] = ("first", "second")

    def _move(self, x: Array, g: Array, m: Array, v: Array, share: Array, step: int, rate: float, decay: float) -> None:
        run = pick("adamw", x.dtype, x)
        run(x, g, m, v, share, rate=rate, decay=decay, betas=self.betas, eps=self.eps, step=step)


@dataclass(frozen=True)
class Adam(AdamW):
    """Adam, arXiv:1412.6980, without weight decay unless asked for; then as `AdamW`."""

    decay: float = 0.0


@dataclass(frozen=True)
class SGD(_Optimiser):
    """Gradient descent with momentum: ``m ← momentum m + g``, ``x ← x - rate (m + decay x)``."""

    momentum: float = 0.9
    slots: tuple[str, ...] = ("first",)

    def _move(self, x: Array, g: Array, m: Array, share: Array, step: int, rate: float, decay: float) -> None:
        m *= self.momentum
        m += (g * share).astype(g.dtype, copy=False)
        x -= rate * (m + decay * x)


def global_norm(grads: dict[str, Array]) -> Any:
    """The norm of all gradients together, as an array of no axes where they live."""
    return sum((_square(g.astype(_arrays.accum_dtype(g.dtype), copy=False)) for g in grads.values()), 0.0) ** 0.5


def _square(g: Array) -> Any:
    g = _arrays.namespace(g).ascontiguousarray(g).reshape(-1).view(_arrays.real_dtype(g.dtype))
    return (g * g).sum()  # no product of vectors: cuBLAS's cannot be captured in a graph
