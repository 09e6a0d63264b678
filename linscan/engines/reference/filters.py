"""The plain loop over time, in array operations: the definition of `lfilter` and `sosfilt`."""

from typing import Any

from linscan._arrays import Array, namespace


def lfilter(b: Array, a: Array, x: Array, zi: Array | None, *, axis: int, workers: Any) -> tuple[Array, Array]:
    xp = namespace(x)
    y = xp.empty(x.shape, x.dtype)
    xs, ys = xp.moveaxis(x, axis, 0), xp.moveaxis(y, axis, 0)
    order = max(b.shape[-1], a.shape[-1]) - 1
    z = xp.zeros((order + 1, *xs.shape[1:]), x.dtype)  # z[order] stays 0: nothing comes from further back
    if zi is not None:
        z[:order] = xp.moveaxis(zi, -1, 0)
    for t in range(len(xs)):
        ys[t] = z[0] + b[..., 0] * xs[t]
        z[:-1] = z[1:]
        for k in range(1, b.shape[-1]):
            z[k - 1] += b[..., k] * xs[t]
        for k in range(1, a.shape[-1]):
            z[k - 1] -= a[..., k] * ys[t]
    return y, xp.moveaxis(z[:order], 0, -1)


def sosfilt(sos: Array, x: Array, zi: Array | None, *, axis: int, workers: Any) -> tuple[Array, Array]:
    xp = namespace(x)
    states = []
    for s in range(sos.shape[-2]):
        start = None if zi is None else zi[..., s, :]
        x, state = lfilter(sos[..., s, :3], sos[..., s, 3:], x, start, axis=axis, workers=workers)
        states.append(state)
    return x, xp.stack(states, axis=-2)
