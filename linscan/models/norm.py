"""The norms of blocks by name, with their parameters."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan._arrays import Array, check_choice, namespace
from linscan.models.layer import Params, Training
from linscan.ops.norm import batch_norm_vjp, batch_statistics_norm_vjp, layer_norm_vjp, rms_norm_vjp

_NORMS = {"layer": ("scale", "shift"), "rms": ("scale",), "batch": ("scale", "shift", "mean", "var"), "none": ()}


def init_norm(kind: str, channels: int, dtype: Any) -> Params:
    """``scale``, and as the norm needs them ``shift`` and the running ``mean`` and ``var``."""
    check_choice("Block", "norm", kind, tuple(_NORMS))
    return {name: np.full(channels, float(name in ("scale", "var")), dtype) for name in _NORMS[kind]}


def norm_vjp(kind: str, params: Params, x: Array, training: Training | None) -> tuple[Array, Callable[..., Any]]:
    """A norm by its name, and ``pullback(dy, around=None)`` to x and its parameters; `around` is added to dx."""
    if kind == "none":
        return x, lambda dy, around=None: (dy if around is None else dy + around, {})
    if kind == "batch" and training is not None:
        return _by_batch(params, x, training)
    rule: Any = {"layer": layer_norm_vjp, "rms": rms_norm_vjp, "batch": batch_norm_vjp}[kind]
    y, back = rule(x, *(params[name] for name in _NORMS[kind]))

    def pullback(dy: Array, around: Array | None = None) -> Any:
        dx, *grads = back(dy, around)
        return dx, dict(zip(_NORMS[kind], grads, strict=True))

    return y, pullback


def _by_batch(params: Params, x: Array, training: Training) -> tuple[Array, Callable[..., Any]]:
    (y, mean, var), back = batch_statistics_norm_vjp(x, params["scale"], params["shift"])
    training.statistics += [(params["mean"], mean), (params["var"], var)]
    xp = namespace(x)

    def pullback(dy: Array, around: Array | None = None) -> Any:
        dx, dscale, dshift = back(dy, around)  # the running statistics had no part in y
        nothing = xp.zeros_like(mean)
        return dx, {"scale": dscale, "shift": dshift, "mean": nothing, "var": nothing}

    return y, pullback
