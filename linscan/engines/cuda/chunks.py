"""How a row is cut into chunks that threads filter side by side, and what meets at their edges.

Between two samples a filter is its state, and a chunk of L samples maps the state before it to the state after it:
z -> M^L z + f, M being one step without input and f what the chunk leaves when it starts from rest. So three launches
do: `reduce` finds every chunk's f (and M^L), `carry` goes from edge to edge, `run` filters every chunk from its true
state. The cut follows from the length alone: a row's bits never depend on the rows beside it.
"""

import math
from typing import NamedTuple

from linscan._arrays import Array, namespace

CHUNK = 256  # samples of a thread, while that makes no more than MOST chunks
MOST = 1 << 15
MAX_ORDER = 16  # states of a filter whose rows are cut; beyond it a row is one chunk: the plain loop
_WARP, _BLOCK = 32, 512


class Cut(NamedTuple):
    """Samples of a chunk and chunks of a row; in `carry`, chunks of an owner (a power of two), threads of a block."""

    size: int
    chunks: int
    span: int
    threads: int


def cut(length: int, order: int) -> Cut:
    """The cut of a row for a filter of this many states."""
    if length <= CHUNK or order > MAX_ORDER:
        return Cut(max(1, length), 1, 1, 1)
    size = max(CHUNK, power_of_two(-(-length // MOST)))
    count, width = -(-length // size), power_of_two(order)
    owners = max(_WARP // width, min(_WARP, power_of_two(count))) if count <= _WARP**2 else _BLOCK // width
    return Cut(size, count, power_of_two(-(-count // owners)), owners * width)


def power_of_two(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << max(0, n - 1).bit_length()


def by_row(v: Array, axes: int) -> tuple[Array, int]:
    """`v` as one contiguous piece for each row of its first `axes`, and its size; 0 where all rows share one piece."""
    shared = all(step == 0 or n == 1 for step, n in zip(v.strides[:axes], v.shape[:axes], strict=True))
    v = namespace(v).ascontiguousarray(v[(0,) * axes] if shared else v)
    return v, 0 if shared else math.prod(v.shape[axes:])
