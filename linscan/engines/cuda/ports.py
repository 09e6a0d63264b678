"""The two ends of a state space on the GPU: see ports.cu."""

import cupy

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.columns import aligned, on_its_device
from linscan.engines.cuda.row_sums import row_sums
from linscan.engines.reference import ports as reference

_THREADS, _AT_A_TIME = 256, 32  # threads of a block, and rows they have on the way
_CHUNKS = 128  # of rows whose sums are kept apart, at most


@on_its_device
def ports(x: Array, w: Array, u: Array, D: Array) -> Array:
    """See `linscan.engines.reference.ports.ports`."""
    own = 2 if x.shape[1] <= 32 else 1
    if not _fits(u, x.shape[1], 64, own):
        return reference.ports(x, w, u, D)
    y = cupy.empty(u.shape, u.dtype)
    _launch("ports", own, x.shape[1], u, (x, w, u, D), y)
    return y


@on_its_device
def ports_pullback(dv: Array, dy: Array, u: Array, w: Array, D: Array) -> tuple[Array, Array, Array]:
    """See `linscan.engines.reference.ports.ports_pullback`."""
    own = 2 if dv.shape[1] <= 16 else 1
    if not _fits(u, dv.shape[1], 32, own):
        return reference.ports_pullback(dv, dy, u, w, D)
    du, (columns, inner) = cupy.empty(u.shape, u.dtype), w.shape
    sums = cupy.empty((-(-len(u) // _rows(len(u))), columns * (inner + 1)), u.dtype)
    _launch("ports_pullback", own, inner, u, (dv, dy, u, w, D), du, sums)
    total = row_sums(sums)
    return du, total[: w.size].reshape(w.shape), total[w.size :]


def _fits(u: Array, inner: int, most: int, own: int) -> bool:
    return u.dtype.char == "f" and 0 < inner <= most and inner % 8 == 0 and u.shape[1] % own == 0


def _rows(n: int) -> int:
    return max(1, -(-n // (_CHUNKS * _AT_A_TIME))) * _AT_A_TIME


def _launch(name: str, own: int, inner: int, u: Array, given: tuple[Array, ...], *made: Array) -> None:
    (n, columns), rows = u.shape, _rows(len(u))
    if u.size:
        code = kernel("ports.cu", name, "float32", ("INNER", inner), ("OWN", own))
        blocks = -(-n // rows) * -(-columns // (32 * own))
        code((blocks,), (_THREADS,), (*map(aligned, given), *made, n, columns, rows))
