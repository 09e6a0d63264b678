"""Diagonal discretisation, elementwise and in double precision."""

from linscan._arrays import Array, namespace
from linscan.engines.reference import phi

Outputs = tuple[Array, ...]


def discretize_diag(a: Array, h: Array, method: str, alpha: float | None) -> Outputs:
    """``ā = f(h a)`` and the weights ``h g(h a)`` in the dtype of `a`, for the float64 steps `h` (broadcast)."""
    xp, dtype = namespace(a), a.dtype
    a_bar, *weights = _values(method, alpha, xp.asarray(h * _double(a)))
    return tuple(xp.asarray(out, dtype) for out in (a_bar, *(h * w for w in weights)))


def discretize_diag_pullback(
    a: Array, h: Array, method: str, alpha: float | None, grads: Outputs
) -> tuple[Array, Array]:
    """The gradients of a and h, in double precision and of the broadcast shape."""
    # ā = f(z) and w = h g(z) with z = h a, f and g analytic:
    #   dz = conj(f'(z)) dā + conj(g'(z)) h dw;   da = h dz;   dh = Re(conj(a) dz + conj(g(z)) dw).
    a = _double(a)
    z = namespace(a).asarray(h * a)
    a_bar, *weights = _values(method, alpha, z)
    f_slope, *slopes = _slopes(method, alpha, z, a_bar)
    grad_a, *grad_w = map(_double, grads)
    grad_z = f_slope.conj() * grad_a + sum(s.conj() * h * g for s, g in zip(slopes, grad_w, strict=True))
    grad_h = a.conj() * grad_z + sum(w.conj() * g for w, g in zip(weights, grad_w, strict=True))
    return h * grad_z, grad_h.real


def _double(x: Array) -> Array:
    return x.astype("complex128" if x.dtype.kind == "c" else "float64", copy=False)


def _values(method: str, alpha: float | None, z: Array) -> Outputs:
    """``f(z)`` and ``g(z)`` of a method, where ``ā = f(dt a)`` and ``w = dt g(dt a)``; for foh also that of w_prev."""
    if alpha is not None:
        return (1 + (1 - alpha) * z) / (1 - alpha * z), 1 / (1 - alpha * z)
    a_bar = namespace(z).exp(z)
    if method == "zoh":
        return a_bar, phi.phi1(z)
    if method == "foh":
        return a_bar, phi.phi2(z), phi.phi1_slope(z)  # phi1 - phi2 is the derivative of phi1
    return a_bar, a_bar if method == "impulse" else namespace(z).ones_like(z)


def _slopes(method: str, alpha: float | None, z: Array, a_bar: Array) -> Outputs:
    """The derivatives of `_values` by z."""
    if alpha is not None:
        square = 1 / (1 - alpha * z) ** 2
        return square, alpha * square
    if method == "zoh":
        return a_bar, phi.phi1_slope(z)
    if method == "foh":
        return a_bar, phi.phi2_slope(z), phi.phi1_curve(z)
    return a_bar, a_bar if method == "impulse" else namespace(z).zeros_like(z)
