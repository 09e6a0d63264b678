"""One step of `selective_scan`, for models that make a sequence as they go."""

from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.ops.selective_args import NAMES, prepare


def selective_step(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    h: Array | None = None,
    *,
    dt_softplus: bool = False,
    real: bool = True,
) -> tuple[Array, Array]:
    """One step of `selective_scan`: the output now, and the state after it.

    Parameters
    ----------
    u, dt, z : array_like, shape (..., D)
        Input, step size and gate of this step; `z` may be None.
    A, D, dt_bias : array_like
        As in `selective_scan`; the last two may be None.
    B, C : array_like, shape (..., N) or (..., G, N)
        Input and output vectors of this step.
    h : array_like, shape (..., D, N), optional
        The state before it: what `selective_scan` and this function return. None means zero.
    dt_softplus : bool, default False
        As in `selective_scan`.
    real : bool, default True
        As in `selective_scan`.

    Returns
    -------
    y : array, shape (..., D)
        The output of this step.
    h : array, shape (..., D, N)
        The state after it, a new array.

    Raises
    ------
    ValueError, TypeError
        As in `selective_scan`.

    See Also
    --------
    selective_scan : all steps at once.

    Notes
    -----
    The scan of one step, bit for bit: O(D N) operations, in constant memory.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import selective_step
    >>> A, B, C = np.array([[-1.0, -2.0]]), np.ones(2), np.ones(2)
    >>> h = None
    >>> for dt in (0.1, 5.0, 0.1):
    ...     y, h = selective_step(np.ones(1), dt, A, B, C, h=h)
    >>> y
    array([8.81845425])
    """
    _, *given = _arrays.take("selective_step", **dict(zip(NAMES, (u, dt, A, B, C, D, z, dt_bias, h), strict=True)))
    rank = max(np.ndim(given[i]) for i in (0, 1, 6) if given[i] is not None)
    for i in (0, 1, 6):
        given[i] = _sequence_of_one(given[i], -1)
    for i in (3, 4):
        given[i] = _sequence_of_one(given[i], -2 if np.ndim(given[i]) > rank else -1)
    p = prepare("selective_step", given, None)
    run = pick("selective_scan", p.dtype, p.arrays[0])
    y, h, _ = run(
        *p.arrays,
        dt_softplus=bool(dt_softplus),
        reverse=False,
        reset=None,
        real=bool(real),
        keep="last",
        workers=None,
    )
    return p.unflat(y[:, 0]), p.unflat(h)


def _sequence_of_one(x: Any, features: int) -> Any:
    """`x` with an axis of time before its axes of features; numbers need none."""
    if np.ndim(x) < -features:
        return x
    return x.reshape(x.shape[:features] + (1,) + x.shape[features:])
