"""The phi functions of exponential integrators, elementwise and without cancellation.

With ``phi1(z) = (e^z - 1) / z`` and ``phi2(z) = (phi1(z) - 1) / z``: what a zero-order and a first-order hold multiply
the input by. The recurrences lose every digit near 0 (and the derivatives twice as many), so there the Taylor series
is summed; both sides are within a few eps where they meet. Arguments are float64 or complex128.
"""

from math import factorial

from linscan._arrays import Array, namespace

_TERMS = 20  # the first term left out is below 1e-19 for |z| <= 1


def expm1(z: Array) -> Array:
    """``e^z - 1`` without cancellation, for complex z as well."""
    xp = namespace(z)
    if z.dtype.kind != "c":
        return xp.expm1(z)
    # Written out: e^x cos y - 1 = expm1(x) cos y - 2 sin^2(y/2), neither term larger than the result needs.
    x, y = z.real, z.imag
    return xp.expm1(x) * xp.cos(y) - 2 * xp.sin(y / 2) ** 2 + 1j * (xp.exp(x) * xp.sin(y))


def phi1(z: Array) -> Array:
    """``(e^z - 1) / z``, which is 1 at 0."""
    xp = namespace(z)
    return xp.where(z == 0, 1, expm1(z) / xp.where(z == 0, 1, z))


def phi2(z: Array) -> Array:
    """``(e^z - 1 - z) / z^2``, which is 1/2 at 0."""
    far = _far(z)
    return _join(z, (phi1(far) - 1) / far, [1 / factorial(n + 2) for n in range(_TERMS)])


def phi1_slope(z: Array) -> Array:
    """The derivative of `phi1`, also ``phi1 - phi2``; 1/2 at 0."""
    far = _far(z)
    return _join(z, (namespace(z).exp(far) - phi1(far)) / far, [(n + 1) / factorial(n + 2) for n in range(_TERMS)])


def phi1_curve(z: Array) -> Array:
    """The second derivative of `phi1`; 1/3 at 0."""
    far = _far(z)
    series = [(n + 1) * (n + 2) / factorial(n + 3) for n in range(_TERMS)]
    return _join(z, (namespace(z).exp(far) - 2 * phi1_slope(far)) / far, series)


def phi2_slope(z: Array) -> Array:
    """The derivative of `phi2`; 1/6 at 0."""
    far = _far(z)
    return _join(z, (phi1(far) - 2 * phi2(far)) / far, [(n + 1) / factorial(n + 3) for n in range(_TERMS)])


def _far(z: Array) -> Array:
    """`z` where ``|z| > 1``, and elsewhere 2, which every closed form is good for."""
    return namespace(z).where(abs(z) > 1, z, 2)


def _join(z: Array, far: Array, series: list[float]) -> Array:
    """`far` where ``|z| > 1``, elsewhere the power series with these coefficients (Horner)."""
    xp = namespace(z)
    near = xp.where(abs(z) > 1, 0, z)
    total = xp.full_like(near, series[-1])
    for coefficient in series[-2::-1]:
        total = total * near + coefficient
    return xp.where(abs(z) > 1, far, total)
