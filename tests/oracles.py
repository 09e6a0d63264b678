"""Plain float64 and complex128 loops: what every engine is compared with. Nothing here imports linscan."""

from fractions import Fraction
from math import factorial

import numpy as np


def wide(x: object) -> np.ndarray:
    """`x` in float64 or complex128."""
    x = np.asarray(x)
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


# scan


def scan(a, b, h0=None, axis=-1, reverse=False, reset=None):
    """h[t] = a[t] h[t-1] + b[t], element by element."""
    a, b = np.broadcast_arrays(wide(a), wide(b))
    a, b = np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0)
    shape = b.shape
    reset = None if reset is None else np.moveaxis(np.broadcast_to(reset, np.moveaxis(b, 0, axis).shape), axis, 0)
    h0 = np.zeros(shape[1:]) if h0 is None else np.broadcast_to(wide(h0), shape[1:])
    h = np.empty(shape, np.result_type(a, b, h0))
    for index in np.ndindex(shape[1:]):
        state = h0[index]
        for t in reversed(range(shape[0])) if reverse else range(shape[0]):
            at = (t, *index)
            state = b[at] if reset is not None and reset[at] else a[at] * state + b[at]
            h[at] = state
    return np.moveaxis(h, 0, axis)


# discretize, hippo


def phi_exact(k, z, order=0):
    """The derivative of this order of phi_k(z) = sum of z^n / (n + k)!, in rational arithmetic, rounded once."""
    re, im = Fraction(float(np.real(z))), Fraction(float(np.imag(z)))
    power_re, power_im, total_re, total_im = Fraction(1), Fraction(0), Fraction(0), Fraction(0)
    for n in range(40 + 3 * int(abs(z))):
        weight = Fraction(factorial(n + order), factorial(n) * factorial(n + order + k))
        total_re, total_im = total_re + weight * power_re, total_im + weight * power_im
        power_re, power_im = power_re * re - power_im * im, power_re * im + power_im * re
    value = complex(float(total_re), float(total_im))
    return value if np.iscomplexobj(z) else value.real


def ode_step(A, B, x, u0, u1, dt, steps=400):
    """x(dt) of x' = A x + B u where u runs straight from u0 to u1, by classical Runge-Kutta steps."""
    h = dt / steps

    def slope(s, x):
        return A @ x + B @ (u0 + (u1 - u0) * s)

    for i in range(steps):
        s = i / steps
        k1 = slope(s, x)
        k2 = slope(s + 0.5 / steps, x + h / 2 * k1)
        k3 = slope(s + 0.5 / steps, x + h / 2 * k2)
        k4 = slope(s + 1 / steps, x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def legendre(n, x):
    """The Legendre polynomials P_0 … P_{n-1} at x, by their recurrence; the last axis is the degree."""
    values = [np.ones_like(x), x]
    for k in range(1, n):
        values.append(((2 * k + 1) * x * values[-1] - k * values[-2]) / (k + 1))
    return np.stack(values[:n], axis=-1)


def laguerre(n, x, alpha=0.0):
    """The generalised Laguerre polynomials L_0 … L_{n-1} at x; the last axis is the degree."""
    values = [np.ones_like(x), 1 + alpha - x]
    for k in range(1, n):
        values.append(((2 * k + 1 + alpha - x) * values[-1] - (k + alpha) * values[-2]) / (k + 1))
    return np.stack(values[:n], axis=-1)


# assoc_scan


def fold(op, items):
    """All prefixes of a list under a Python operator on single elements, one after the other."""
    prefixes = []
    for x in items:
        prefixes.append(op(prefixes[-1], x) if prefixes else x)
    return prefixes
