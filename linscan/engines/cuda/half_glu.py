"""A gate opened by what it lets through, on the GPU: see half_glu.cu."""

import cupy

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.activation import number_of
from linscan.engines.cuda.columns import aligned, on_its_device
from linscan.engines.cuda.row_sums import row_sums
from linscan.engines.reference import half_glu as reference

_WIDTHS, _ROWS, _DEEP = (64, 128), 64, 8  # as in half_glu.cu
_CHUNKS = 256  # of rows whose sums are kept apart, at most


@on_its_device
def half_glu(x: Array, w: Array, b: Array | None, around: Array | None, kind: str) -> tuple[Array, Array]:
    """See `linscan.engines.reference.half_glu.half_glu`."""
    if not _fits(x):
        return reference.half_glu(x, w, b, around, kind)
    z, y = (cupy.empty(x.shape, x.dtype) for _ in range(2))
    _launch("half_glu", x, -(-len(x) // _ROWS), kind, (x, w, b, around), (z, y, len(x)))
    return y, z


@on_its_device
def half_glu_pullback(dy: Array, x: Array, z: Array, w: Array, b: Array | None, kind: str):
    """See `linscan.engines.reference.half_glu.half_glu_pullback`."""
    if not _fits(x):
        return reference.half_glu_pullback(dy, x, z, w, b, kind)
    n, D = x.shape
    dz, dx = (cupy.empty(x.shape, x.dtype) for _ in range(2))
    _launch("half_glu_pullback", x, -(-n // _ROWS), kind, (dy, x, z, w, b), (dz, dx, n))
    rows = max(_ROWS, -(-n // (_CHUNKS * _DEEP)) * _DEEP)
    sums = cupy.empty((-(-n // rows), D * D + D), x.dtype)
    _launch("slopes", x, len(sums), kind, (x, dz), (sums, n, rows))
    total = row_sums(sums)
    return dx, total[: D * D].reshape(D, D), None if b is None else total[D * D :]


def _fits(x: Array) -> bool:
    return x.dtype.char == "f" and x.shape[1] in _WIDTHS


def _launch(name, like, blocks, kind, given, rest):
    D = like.shape[1]
    if blocks:
        code = kernel("half_glu.cu", name, "float32", ("D", D), number_of(kind))
        code((blocks,), (D * D // 64 if name == "slopes" else D,), (*map(aligned, given), *rest))
