"""What `dlsim` and `lsim` take as a system: matrices, a transfer function, zeros and poles, or SciPy's objects."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array

_FORMS = {2: "(num, den)", 3: "(z, p, k)", 4: "(A, B, C, D)"}


def state_space(who: str, system: Any, discrete: bool) -> tuple[tuple[Any, ...], Any, bool]:
    """The matrices (A, B, C, D), the sampling interval (None if continuous), and whether matrices were given."""
    if hasattr(system, "to_ss"):  # scipy.signal.lti or dlti
        if (system.dt is None) == discrete:
            wanted = "discrete" if discrete else "continuous"
            raise TypeError(f"{who}: system must be {wanted}; got {type(system).__name__}")
        given, matrices = hasattr(system, "A"), system.to_ss()
        return (matrices.A, matrices.B, matrices.C, matrices.D), system.dt, given
    parts, dt = (tuple(system[:-1]), system[-1]) if discrete else (tuple(system), None)
    if len(parts) not in _FORMS:
        forms = ", ".join(f"{form[:-1]}, dt)" if discrete else form for form in _FORMS.values())
        raise ValueError(f"{who}: system must be one of {forms}; got {len(system)} items")
    if len(parts) == 4:
        return parts, dt, True
    return _converted(who, parts), dt, False


def _converted(who: str, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """SciPy's state-space form of a transfer function or of zeros and poles, in the precision of these."""
    from scipy import signal  # a second of import that only these forms pay for

    xp, *arrays = _arrays.take(who, **{f"system[{i}]": part for i, part in enumerate(parts)})
    if xp is not np:
        raise TypeError(f"{who}: a system on the GPU must be given as matrices (A, B, C, D)")
    dtype = _arrays.result_dtype(who, **{f"system[{i}]": part for i, part in enumerate(arrays)})
    matrices = (signal.tf2ss if len(parts) == 2 else signal.zpk2ss)(*arrays)
    single = _arrays.real_dtype(_arrays.accum_dtype(dtype)) == np.float32
    return tuple(m.astype("F" if m.dtype.kind == "c" else "f") if single else m for m in matrices)


def arrays_of(who: str, system: Sequence[Any], u: Any, x0: Any) -> tuple[Any, ...]:
    """A, B, C, D, the input (…, T, m) and the first state (…, n) as arrays that fit, and the result's dtype."""
    A, B, C, D = system
    xp, A, B, C, D, u, x0 = _arrays.take(who, A=A, B=B, C=C, D=D, u=u, x0=x0)
    dtype = _arrays.result_dtype(who, A=A, B=B, C=C, D=D, u=u, x0=x0)
    compute = _arrays.accum_dtype(dtype)
    A, B, C = (xp.atleast_2d(xp.asarray(m, compute)) for m in (A, B, C))
    n, m, p = A.shape[-1], B.shape[-1], C.shape[-2]
    D = xp.zeros((p, m), compute) if D is None else xp.atleast_2d(xp.asarray(D, compute))
    for name, matrix, shape in (("A", A, (n, n)), ("B", B, (n, m)), ("C", C, (p, n)), ("D", D, (p, m))):
        if matrix.shape[-2:] != shape:
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"{who}: {name} must have shape (..., {wanted}) to fit A, B and C; got {matrix.shape}")
    u = xp.atleast_1d(xp.asarray(u, compute))
    u = u[:, None] if u.ndim == 1 else u
    if u.shape[-1] != m:
        raise ValueError(f"{who}: the system has {m} input(s), so the input must be (..., T, {m}); got {u.shape}")
    x0 = xp.asarray(0 if x0 is None else x0, compute)
    x0 = xp.broadcast_to(x0, (n,)) if x0.ndim == 0 else x0
    if x0.shape[-1] != n:
        raise ValueError(f"{who}: the system has {n} state(s), so the first state must be (..., {n}); got {x0.shape}")
    return A, B, C, D, u, x0, dtype


def broadcast(who: str, A: Array, B: Array, C: Array, D: Array, u: Array, x0: Array) -> tuple[Array, ...]:
    """The same with equal leading axes, as views."""
    xp = _arrays.namespace(u)
    shapes = {"A": A, "B": B, "C": C, "D": D, "u": u}
    lead = _arrays.broadcast_shapes(who, **{k: v.shape[:-2] for k, v in shapes.items()}, x0=x0.shape[:-1])
    x0 = _arrays.broadcast_to(who, "x0", x0, (*lead, A.shape[-1]))
    return *(xp.broadcast_to(v, (*lead, *v.shape[-2:])) for v in shapes.values()), x0
