"""How passes over matrices are launched: who owns which rows and columns follows from the matrix's shape alone."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import cupy

from linscan._arrays import Array, dtype_name
from linscan.engines.cuda._load import kernel

P = ParamSpec("P")
T = TypeVar("T")

_THREADS, _DEEP = 256, 16  # threads of a block, and rows of each
_CHUNKS = 512  # of rows whose sums are kept apart, at most
_SIDE = 32  # columns of a block of row_sums.cu


class Shares(NamedTuple):
    """How a matrix of n rows is cut: ``blocks`` of ``rows`` rows, in ``chunks``; macros for columns.cuh."""

    macros: tuple[tuple[str, int], ...]
    rows: int
    chunks: int
    blocks: int


def shares(n: int, columns: int, *matrices: Array | None, summed: bool = False) -> Shares:
    """Blocks for `n` rows; where sums over rows are wanted, so few that those of chunks are soon summed too."""
    size, bits = 0, 0
    for x in matrices:
        if x is not None:
            size, bits = x.itemsize, bits | x.data.ptr | x.strides[0]
    pack = 4 if size < 8 else 2
    return _cut(n, columns, 1 if columns % pack or bits % (pack * size) else pack, summed)


@lru_cache(4096)
def _cut(n: int, columns: int, pack: int, summed: bool) -> Shares:
    width = 32
    while width > 1 and width // 2 * pack >= columns:
        width //= 2
    rows = _THREADS // width * _DEEP
    if summed:
        rows *= -(-n // (rows * _CHUNKS)) or 1
    chunks = -(-n // rows)
    return Shares((("PACK", pack), ("WIDTH", width)), rows, chunks, chunks * -(-columns // (width * pack)))


def run(source: str, name: str, like: Array, cut: Shares, arguments: tuple[Any, ...], *macros: tuple[str, int]) -> None:
    """Launch a kernel that walks rows of the shape of `like`, which need not be where `like` lies; see columns.cuh."""
    if cut.blocks:
        code = kernel(source, name, dtype_name(like.dtype), *cut.macros, *macros)
        code((cut.blocks,), (_THREADS,), (*arguments, *like.shape, cut.rows))


def total(sums: Array) -> Array:
    """The sum over chunks, (chunks, D), of which `shares` makes no more than one launch of row_sums.cu takes."""
    columns = sums.shape[1]
    result = cupy.empty(columns, sums.dtype)
    if not sums.size:
        result.fill(0)
        return result
    code = kernel("row_sums.cu", "run", dtype_name(sums.dtype))
    code((-(-columns // _SIDE),), (_THREADS,), (sums, result, *sums.shape))
    return result


def rows_of(x: Array | None) -> Array | None:
    """`x`, (n, D), copied unless columns are neighbours in memory and rows whole elements apart."""
    if x is None or (x.strides[1] == x.itemsize and x.strides[0] % x.itemsize == 0):
        return x
    return cupy.ascontiguousarray(x)


def aligned(x: Array | None) -> Array | None:
    """`x`, copied unless it is one piece that begins where four numbers may be read at once."""
    return x if x is None or (x.flags.c_contiguous and x.data.ptr % 16 == 0) else x.copy(order="C")


def vector(x: Array | None) -> Array | None:
    """`x`, (D,), copied unless its elements are neighbours in memory."""
    return x if x is None or x.strides[0] == x.itemsize else cupy.ascontiguousarray(x)


def operand(x: Array | None) -> tuple[Array | None, int]:
    """A matrix as kernels take it: its address and the elements between rows."""
    return (None, 0) if x is None else (x, x.strides[0] // x.itemsize)


def on_its_device(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, run on the device of its first argument."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        first: Any = args[0]
        if first.data.device_id == cupy.cuda.runtime.getDevice():
            return function(*args, **options)
        with cupy.cuda.Device(first.data.device_id):
            return function(*args, **options)

    return call
