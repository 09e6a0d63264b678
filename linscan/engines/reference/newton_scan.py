"""Newton's method for all steps of a nonlinear recurrence at once, as array code.

That code stands in `linscan.ops.newton_solve`, for its linear recurrences have engines; it comes as an argument.
"""

from collections.abc import Callable
from typing import Any

from linscan._arrays import Array


def newton_scan(r: Any, array_form: Callable[..., Any], **settings: Any) -> tuple[Array, Array, Array, Array]:
    """States after each step, and of every row whether it converged, how many corrections it took, and the residual."""
    return array_form(r, **settings)


def newton_scan_pullback(
    r: Any, array_form: Callable[..., Any], states: Array, dh: Array, dstate: Array, *, workers: Any
) -> tuple[Array, Array, Array | None, Array]:
    """Gradients of x, y, w and the first state, forwards in time."""
    return array_form(r, states, dh, dstate, workers)
