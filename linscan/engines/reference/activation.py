"""Elementwise nonlinear functions, gates, and their pullbacks, in the arrays' own dtype; 16-bit ones in float32.

`around` is added to the result, or None: what passes by.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype, namespace, sum_rows


def activation(x: Array, kind: str) -> Array:
    """See `linscan.ops.activation.activation`."""
    return _RULES[kind](namespace(x), _wide(x))[0].astype(x.dtype, copy=False)


def activation_pullback(dy: Array, x: Array, kind: str, around: Array | None) -> Array:
    """The gradient of x: ``dy f'(x) + around``."""
    dx = _wide(dy) * _RULES[kind](namespace(x), _wide(x))[1]()
    return _plus(dx, around, x.dtype)


def gate(value: Array, z: Array, b: Array | None, around: Array | None) -> Array:
    """See `linscan.ops.activation.gate`: ``value σ(z + b) + around`` of matrices (n, D), b being (D,)."""
    return _plus(_wide(value) * sigmoid(_shifted(z, b)), around, value.dtype)


def gate_pullback(dy: Array, value: Array, z: Array, b: Array | None, dvalue: Array, dz: Array) -> Array | None:
    """Write `dvalue` and `dz`, which may be halves of one matrix, and return db, or None if there is no `b`."""
    share = sigmoid(_shifted(z, b))
    dvalue[...] = passed = _wide(dy) * share
    dz[...] = slope = passed * _wide(value) * (1 - share)  # the gate gets dy value σ (1 - σ)
    return None if b is None else sum_rows(slope)


def sigmoid(x: Array) -> Array:
    """``1 / (1 + e^-x)``, without overflow."""
    return _special(namespace(x)).expit(x)


def softplus(x: Array) -> Array:
    """``log(1 + e^x)``, without overflow."""
    return namespace(x).logaddexp(x, x.dtype.type(0))


def _special(xp: Any) -> Any:
    return importlib.import_module("scipy.special" if xp is np else "cupyx.scipy.special")


def _wide(x: Array) -> Array:
    return x.astype(accum_dtype(x.dtype), copy=False)


def _shifted(z: Array, b: Array | None) -> Array:
    return _wide(z) if b is None else _wide(z) + b


def _plus(y: Array, around: Array | None, dtype: Any) -> Array:
    return (y if around is None else y + around).astype(dtype, copy=False)


_Rule = tuple[Array, Callable[[], Array]]


# Each rule gives f(x) and a function that makes f'(x), so that a forward alone pays for no derivative.
def _relu(xp: Any, x: Array) -> _Rule:
    return xp.maximum(x, 0), lambda: (x > 0).astype(x.dtype)


def _gelu(xp: Any, x: Array) -> _Rule:
    half, density = x.dtype.type(0.5), x.dtype.type(1 / np.sqrt(2 * np.pi))
    below = half * _special(xp).erfc(x * x.dtype.type(-np.sqrt(0.5)))  # Φ(x), with all its digits far below 0
    return x * below, lambda: below + x * density * xp.exp(-half * x * x)


def _gelu_tanh(xp: Any, x: Array) -> _Rule:
    root, cubic = x.dtype.type(np.sqrt(2 / np.pi)), x.dtype.type(0.044715)
    s = xp.tanh(root * (x + cubic * x**3))

    def slope() -> Array:
        return (1 + s) / 2 + x * (1 - s * s) * root * (1 + 3 * cubic * x * x) / 2

    return x * (1 + s) / 2, slope


def _silu(xp: Any, x: Array) -> _Rule:
    s = sigmoid(x)
    return x * s, lambda: s * (1 + x * (1 - s))


def _sigmoid(xp: Any, x: Array) -> _Rule:
    s = sigmoid(x)
    return s, lambda: s * (1 - s)


def _tanh(xp: Any, x: Array) -> _Rule:
    s = xp.tanh(x)
    return s, lambda: 1 - s * s


_RULES = {
    "identity": lambda xp, x: (x, lambda: xp.ones_like(x)),
    "relu": _relu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "softplus": lambda xp, x: (softplus(x), lambda: sigmoid(x)),
}
