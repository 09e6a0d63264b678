"""Plain float64 and complex128 loops: what every engine is compared with. Nothing here imports linscan."""

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
