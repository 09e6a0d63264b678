"""Scans in both directions side by side, by the scan of whichever engine runs."""

from typing import Any

from linscan._arrays import Array, namespace
from linscan.engines import pick


def two_way(a: Array, b: Array, resets: tuple[Array, Array] | None) -> Array:
    """See `linscan.ops.two_way.two_way_vjp`; `a` and `b` are broadcast, and so are `resets`, for each direction."""
    x, run = namespace(b).empty((*b.shape[:-1], 2 * b.shape[-1]), b.dtype), pick("scan", b.dtype, b)
    for half, options in _directions(b.shape[-1], b.ndim - 2, resets):
        run(a, b, None, out=x[..., half], **options)
    return x


def two_way_pullback(a: Array, x: Array, dx: Array, resets: tuple[Array, Array] | None) -> tuple[Array, Array]:
    """The gradients of `a` and `b`, before sums over broadcast axes."""
    run, grads = pick("scan_pullback", x.dtype, x), []
    for half, options in _directions(x.shape[-1] // 2, x.ndim - 2, resets):
        grads.append(run(a, x[..., half], None, dx[..., half], **options))
    return grads[0][0] + grads[1][0], grads[0][1] + grads[1][1]


def _directions(n: int, axis: int, resets: Any) -> list[tuple[slice, dict[str, Any]]]:
    marks = resets or (None, None)
    options = [{"axis": axis, "reverse": bool(i), "reset": marks[i], "workers": None} for i in range(2)]
    return list(zip((slice(n), slice(n, None)), options, strict=True))
