"""Elementwise nonlinear functions by name, and gates: what lies between the products of a layer.

The pullback of `activation` takes a second array, `around`, to be added to dx: what flows around the function.
"""

from collections.abc import Callable

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.reference.activation import sigmoid as sigmoid
from linscan.engines.reference.activation import softplus as softplus

KINDS = ("identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "softplus")


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


def activation_vjp(x: Array, kind: str) -> tuple[Array, Callable[..., Array]]:
    """`activation` and its pullback, ``pullback(dy, around=None)`` to ``dx``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.activation import activation_vjp
    >>> y, pullback = activation_vjp(np.array([-1.0, 2.0]), "relu")
    >>> pullback(np.array([1.0, 1.0]))
    array([0., 1.])
    """
    who = "activation"
    _arrays.check_choice(who, "kind", kind, KINDS)
    (given,), (x,) = _arrays.take_real(who, x=x)
    y, run = pick("activation", x.dtype, x)(x, kind), pick("activation_pullback", x.dtype, x)

    def pullback(dy: Array | None, around: Array | None = None) -> Array:
        g = _arrays.cotangent(who, "dy", dy, y)
        around = None if around is None else _arrays.cotangent(who, "around", around, y)
        return _arrays.grad_like(run(g, x, kind, around), given)

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


def glu_vjp(
    x: Array, around: Array | None = None
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array | None]]]:
    """`glu` added to `around`, (…, D/2), if that is given, and the pullback, ``pullback(dy)`` to ``(dx, daround)``."""
    who = "glu"
    given, (x, around) = _arrays.take_real(who, x=x, around=around)
    if not x.ndim or x.shape[-1] % 2:
        raise ValueError(f"{who}: x must have an even last axis; got {x.shape}")
    half = x.shape[-1] // 2
    shape = (*x.shape[:-1], half)
    if around is not None and around.shape != shape:
        raise ValueError(f"{who}: around must have shape {shape}; got {around.shape}")
    value, z = (_arrays.matrix(x[..., part]) for part in (slice(half), slice(half, None)))
    run, back = (pick(name, x.dtype, x) for name in ("gate", "gate_pullback"))
    y = run(value, z, None, None if around is None else _arrays.matrix(around)).reshape(shape)

    def pullback(dy: Array | None) -> tuple[Array, Array | None]:
        g, dx = _arrays.cotangent(who, "dy", dy, y), _arrays.namespace(y).empty((len(value), 2 * half), x.dtype)
        back(_arrays.matrix(g), value, z, None, dx[:, :half], dx[:, half:])
        return _arrays.grad_like(dx.reshape(x.shape), given[0]), _arrays.grad_like(g, given[1])

    return y, pullback


def gate_vjp(
    value: Array, z: Array, b: Array | None = None, around: Array | None = None
) -> tuple[Array, Callable[[Array | None], tuple[Array | None, ...]]]:
    """Gated values added to what flows around them, ``y = value σ(z + b) + around``, and the pullback.

    Parameters
    ----------
    value, z : array_like, shape (…, D)
        Real, of one shape.
    b : array_like, shape (D,), optional
        None means 0.
    around : array_like, shape (…, D), optional
        None means 0.

    Returns
    -------
    y : array, shape (…, D)
        Of the promoted dtype; 16-bit types are computed in float32.
    pullback : callable
        ``pullback(dy)`` to ``(dvalue, dz, db, daround)``.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        For a complex or unsupported dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.activation import gate_vjp
    >>> gate_vjp(np.array([3.0, 4.0]), np.array([-1.0, 99.0]), np.array([1.0, 1.0]))[0]
    array([1.5, 4. ])
    """
    who = "gate"
    given, (value, z, b, around) = _arrays.take_real(who, value=value, z=z, b=b, around=around)
    for name, x, shape in (("z", z, value.shape), ("b", b, value.shape[-1:]), ("around", around, value.shape)):
        if x is not None and x.shape != shape:
            raise ValueError(f"{who}: {name} must have shape {shape}; got {x.shape}")
    rows = [None if x is None else _arrays.matrix(x) for x in (value, z, around)]
    b = None if b is None else _arrays.cast(_arrays.namespace(b), b, _arrays.accum_dtype(b.dtype))
    y = pick("gate", value.dtype, value)(rows[0], rows[1], b, rows[2]).reshape(value.shape)
    run = pick("gate_pullback", value.dtype, value)

    def pullback(dy: Array | None) -> tuple[Array | None, ...]:
        g = _arrays.cotangent(who, "dy", dy, y)
        dvalue, dz = (_arrays.namespace(y).empty(y.shape, y.dtype) for _ in range(2))
        db = run(_arrays.matrix(g), rows[0], rows[1], b, _arrays.matrix(dvalue), _arrays.matrix(dz))
        return tuple(map(_arrays.grad_like, (dvalue, dz, db, g), given))

    return y, pullback


def softplus_inverse(y: Array) -> Array:
    """The x whose `softplus` is `y` > 0."""
    return y + _arrays.namespace(y).log(-_arrays.namespace(y).expm1(-y))
