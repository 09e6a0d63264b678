"""The log-space scans on the GPU: three operators for the tiles of assoc.cuh."""

from functools import partial
from typing import Any

import cupy

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.assoc_tiles import Operands, launch

_PART = 5  # numbers of an element and the word beside it, at most


def max_scan(a: Array, b: Array, h0: Array | None, *, axis, reverse, reset, workers) -> Array:
    """See `linscan.ops.max_scan.max_scan`."""
    h = cupy.empty(b.shape, b.dtype)
    _run({}, (a, b, None), (h, None), (h0, None), reset, axis, reverse)
    return h


def lse_scan(a: Array, b: Array, h0: Array | None, *, axis, reverse, reset, workers) -> Array:
    """See `linscan.ops.lse_scan.lse_scan`."""
    h = cupy.empty(b.shape, b.dtype)
    _run({"LOGARITHM": 1}, (a, b, None), (h, None), (h0, None), reset, axis, reverse)
    return h


def softmax_average(s: Array, v: Array, w: Array, z0, y0, *, axis, reverse, reset, workers) -> tuple[Array, Array]:
    """See `linscan.ops.softmax_average.softmax_average`; `v` is of the shape of the means, `s` and `w` of the sums."""
    y = cupy.empty(v.shape, v.dtype)
    if s.shape == v.shape:
        z = sums = cupy.empty(s.shape, s.dtype)
    else:  # scores that serve several values: their sums once, then the means beside all of them
        z, sums = lse_scan(w, s, z0, axis=axis, reverse=reverse, reset=reset, workers=workers), None
        s, w, reset = (None if x is None else cupy.broadcast_to(x, v.shape) for x in (s, w, reset))
        z0 = None if z0 is None else cupy.broadcast_to(z0, v.shape[:axis] + v.shape[axis + 1 :])
    _run({"LOGARITHM": 1, "AVERAGE": 1}, (w, s, v), (sums, y), (z0, y0), reset, axis, reverse)
    return y, z


def _run(kind: dict[str, int], inputs: Any, outputs: Any, firsts: Any, reset: Any, axis: int, reverse: bool) -> None:
    like = inputs[1]
    if not like.size:
        return
    flags = tuple((name, kind.get(name, 0)) for name in ("LOGARITHM", "AVERAGE"))
    compiled = partial(_compiled, like.dtype.name, flags)
    part = (_PART * accum_dtype(like.dtype).itemsize + 7) // 8 * 8
    launch(compiled, flags, Operands(inputs, outputs, firsts, reset), axis, reverse, part)


def _compiled(dtype: str, flags: tuple[tuple[str, int], ...], sizes: tuple[tuple[str, int], ...]) -> Any:
    return kernel("semiring_scan.cu", "scan", dtype, *flags, *sizes)
