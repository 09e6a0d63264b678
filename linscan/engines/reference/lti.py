"""The plain loop over time, in array operations: the definition of `dlsim`."""

from typing import Any

from linscan._arrays import Array, namespace


def dlsim(A: Array, B: Array, C: Array, D: Array, u: Array, x0: Array, *, workers: Any) -> tuple[Array, Array]:
    xp = namespace(u)
    rows, T = u.shape[:-2], u.shape[-2]
    y, x = xp.empty((*rows, T, C.shape[-2]), u.dtype), xp.empty((*rows, T, A.shape[-1]), u.dtype)
    state = x0[..., None]
    for t in range(T):
        given = u[..., t, :, None]
        x[..., t, :] = state[..., 0]
        y[..., t, :] = (C @ state + D @ given)[..., 0]
        state = A @ state + B @ given
    return y, x
