"""The norms of blocks by name, with their parameters.

A batch norm learns with the statistics of its batch, and long sequences have others than short ones. Where batches are
made of like lengths, statistics for use must be told apart by length too: a model has to be used as it was trained
(Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", 2021, arXiv:2105.07576, on batches of several domains).
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np

from linscan._arrays import Array, check_choice, namespace
from linscan.models.layer import Params, Training
from linscan.ops.norm import batch_norm_vjp, batch_statistics_norm_vjp, layer_norm_vjp, rms_norm_vjp

_NORMS = {"layer": ("scale", "shift"), "rms": ("scale",), "batch": ("scale", "shift", "mean", "var"), "none": ()}


def init_norm(kind: str, channels: int, dtype: Any, buckets: tuple[int, ...] = ()) -> Params:
    """``scale``, and as the norm needs them ``shift`` and the running ``mean`` and ``var``, a row for every bucket."""
    check_choice("Block", "norm", kind, tuple(_NORMS))
    if buckets and kind not in ("batch", "none"):
        raise ValueError(f"Block: buckets are of a batch norm; got norm={kind!r}")
    shapes = {name: (len(buckets), channels) for name in ("mean", "var") if buckets}
    return {name: np.full(shapes.get(name, channels), float(name in ("scale", "var")), dtype) for name in _NORMS[kind]}


def norm_vjp(
    kind: str, params: Params, x: Array, training: Training | None, buckets: tuple[int, ...] = ()
) -> tuple[Array, Callable[..., Any]]:
    """A norm by its name, and ``pullback(dy, around=None)`` to x and its parameters; `around` is added to dx."""
    if kind == "none":
        return x, lambda dy, around=None: (dy if around is None else dy + around, {})
    if buckets:
        return _by_length(params, x, training, min(bisect_left(buckets, x.shape[-2]), len(buckets) - 1))
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


def _by_length(params: Params, x: Array, training: Training | None, row: int) -> tuple[Array, Callable[..., Any]]:
    """Batch norm with one row of the running statistics."""
    own = {name: params[name][row] for name in ("mean", "var")}
    y, back = norm_vjp("batch", params | own, x, training)

    def pullback(dy: Array, around: Array | None = None) -> Any:
        dx, grads = back(dy, around)
        for name in own:
            grad, grads[name] = grads[name], namespace(x).zeros_like(params[name])
            grads[name][row] = grad
        return dx, grads

    return y, pullback
