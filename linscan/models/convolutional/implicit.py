"""Implicit filters: a small network with sines makes taps from their position, and a window lets them decay.

features of l: l/(L-1), cos(2π f l/L), -sin(2π f l/L);  hidden layers x ← sin(ω (x w + b));  k_l = (x w) e^(-δ l/(L-1))
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan._arrays import Array, namespace
from linscan.models.initial import uniform_fan
from linscan.models.layer import Params
from linscan.ops.dense import dense_vjp

_HIDDEN = 3  # layers
_FAST, _SLOW, _LEFT = 0.3, 1.5, 0.01  # shares of L after which the shortest and the longest window have fallen to _LEFT


def init_filter(rng: np.random.Generator, sizes: tuple[int, int, int], frequency: float) -> Params:
    """``w0``, ``b0``, …, ``frequency`` for `sizes`: features, width of the hidden layers, filters."""
    features, width, filters = sizes
    rows = [features, *(width,) * _HIDDEN]
    params = {}
    for i in range(_HIDDEN):
        params[f"w{i}"] = uniform_fan(rng, (rows[i], width), rows[i])
        params[f"b{i}"] = uniform_fan(rng, (width,), rows[i])
    params[f"w{_HIDDEN}"] = uniform_fan(rng, (width, filters), width)
    return params | {"frequency": np.full(width, frequency)}


def filters_vjp(params: Params, taps: int, length: int) -> tuple[Array, Callable[[Array], Params]]:
    """The first `taps` of all filters of `length` taps, (taps, filters), and the pullback to the network."""
    xp, frequency = namespace(params["w0"]), params["frequency"]
    features, filters = len(params["w0"]), params[f"w{_HIDDEN}"].shape[1]
    x, window = (xp.asarray(c, frequency.dtype) for c in _positions(min(taps, length), length, features, filters))
    backs: list[Any] = []
    for i in range(_HIDDEN):
        z, back = dense_vjp(x, params[f"w{i}"], params[f"b{i}"])
        x = xp.sin(frequency * z)
        backs.append((z, back))
    k, last = dense_vjp(x, params[f"w{_HIDDEN}"])

    def pullback(dk: Array) -> Params:
        dx, dw, _ = last(dk * window)
        grads = {f"w{_HIDDEN}": dw, "frequency": xp.zeros_like(frequency)}
        for i, (z, back) in reversed(list(enumerate(backs))):
            slope = dx * xp.cos(frequency * z)
            grads["frequency"] += (slope * z).sum(0)
            dx, grads[f"w{i}"], grads[f"b{i}"] = back(slope * frequency)
        return {name: grads[name] for name in params}

    return k * window, pullback


def _positions(taps: int, length: int, features: int, filters: int) -> tuple[np.ndarray, np.ndarray]:
    """What the network sees of every position, and the windows."""
    bands, t = (features - 1) // 2, np.arange(taps)[:, None]
    part = t / max(1, length - 1)
    angle = 2 * np.pi * t / length * np.linspace(1e-4, bands - 1, bands)
    decay = -np.log(_LEFT) * np.linspace(1 / _SLOW, 1 / _FAST, filters)
    return np.concatenate([part, np.cos(angle), -np.sin(angle)], -1), np.exp(-part * decay)
