"""Elementwise nonlinear functions by name, each with its derivative, and the gated linear unit."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array


def activation(x: Array, kind: str) -> Array:
    """Elementwise function ``y = f(x)`` of a real array.

    Parameters
    ----------
    x : array_like
        Real.
    kind : {"identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "softplus"}
        ``gelu`` is ``x Φ(x)`` with the normal distribution Φ, ``gelu_tanh`` its usual approximation (what JAX means by
        gelu), ``silu`` is ``x σ(x)`` and ``softplus`` ``log(1 + e^x)``.

    Returns
    -------
    y : array
        Of the shape of `x` and its dtype (integers: float64).

    Raises
    ------
    ValueError
        For an unknown `kind`.
    TypeError
        For a complex or unsupported dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.activation import activation
    >>> activation(np.array([-1.0, 0.0, 2.0]), "gelu").round(4)
    array([-0.1587,  0.    ,  1.9545])
    """
    return activation_vjp(x, kind)[0]


def activation_vjp(x: Array, kind: str) -> tuple[Array, Callable[[Array | None], Array]]:
    """`activation` and its pullback, ``pullback(dy)`` to ``dx``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.activation import activation_vjp
    >>> y, pullback = activation_vjp(np.array([-1.0, 2.0]), "relu")
    >>> pullback(np.array([1.0, 1.0]))
    array([0., 1.])
    """
    who = "activation"
    _arrays.check_choice(who, "kind", kind, tuple(_RULES))
    xp, x = _arrays.take(who, x=x)
    dtype = _arrays.result_dtype(who, x=x)
    if dtype.kind == "c":
        raise TypeError(f"{who}: x must be real; got {dtype}")
    wide = xp.asarray(x, _arrays.accum_dtype(dtype))
    value, slope = _RULES[kind](xp, wide)
    y = value.astype(dtype, copy=False)

    def pullback(dy: Array | None) -> Array:
        return _arrays.grad_like(_arrays.cotangent(who, "dy", dy, y) * slope(), x)

    return y, pullback


def glu(x: Array) -> Array:
    """Gated linear unit of an even last axis, ``y = x₁ σ(x₂)`` for the halves ``x₁, x₂`` of `x`.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.activation import glu
    >>> glu(np.array([3.0, 4.0, 0.0, 100.0]))
    array([1.5, 4. ])
    """
    return glu_vjp(x)[0]


def glu_vjp(x: Array) -> tuple[Array, Callable[[Array | None], Array]]:
    """`glu` and its pullback, ``pullback(dy)`` to ``dx``."""
    xp, x = _arrays.take("glu", x=x)
    if not getattr(x, "ndim", 0) or x.shape[-1] % 2:
        raise ValueError(f"glu: x must have an even last axis; got {getattr(x, 'shape', ())}")
    half = x.shape[-1] // 2
    value, gate = x[..., :half], sigmoid(x[..., half:])
    y = value * gate

    def pullback(dy: Array | None) -> Array:
        g = _arrays.cotangent("glu", "dy", dy, y)
        passed = g * gate  # to the value; the gate gets dy x₁ σ (1 - σ)
        return _arrays.grad_like(xp.concatenate([passed, passed * value * (1 - gate)], -1), x)

    return y, pullback


def sigmoid(x: Array) -> Array:
    """``1 / (1 + e^-x)``, without overflow."""
    return _special(_arrays.namespace(x)).expit(x)


def softplus(x: Array) -> Array:
    """``log(1 + e^x)``, without overflow."""
    xp = _arrays.namespace(x)
    return xp.logaddexp(x, x.dtype.type(0))


def softplus_inverse(y: Array) -> Array:
    """The x whose `softplus` is `y` > 0."""
    return y + _arrays.namespace(y).log(-_arrays.namespace(y).expm1(-y))


def _special(xp: Any) -> Any:
    return importlib.import_module("scipy.special" if xp is np else "cupyx.scipy.special")


# Each rule gives f(x) and a function that makes f'(x), so that a forward alone pays for no derivative.
def _relu(xp: Any, x: Array) -> Any:
    return xp.maximum(x, 0), lambda: (x > 0).astype(x.dtype)


def _gelu(xp: Any, x: Array) -> Any:
    half, density = x.dtype.type(0.5), x.dtype.type(1 / np.sqrt(2 * np.pi))
    below = half * _special(xp).erfc(x * x.dtype.type(-np.sqrt(0.5)))  # Φ(x), with all its digits far below 0
    return x * below, lambda: below + x * density * xp.exp(-half * x * x)


def _gelu_tanh(xp: Any, x: Array) -> Any:
    root, cubic = x.dtype.type(np.sqrt(2 / np.pi)), x.dtype.type(0.044715)
    s = xp.tanh(root * (x + cubic * x**3))

    def slope() -> Array:
        return (1 + s) / 2 + x * (1 - s * s) * root * (1 + 3 * cubic * x * x) / 2

    return x * (1 + s) / 2, slope


def _silu(xp: Any, x: Array) -> Any:
    s = sigmoid(x)
    return x * s, lambda: s * (1 + x * (1 - s))


def _sigmoid(xp: Any, x: Array) -> Any:
    s = sigmoid(x)
    return s, lambda: s * (1 - s)


def _tanh(xp: Any, x: Array) -> Any:
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
