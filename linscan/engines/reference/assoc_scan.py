"""Five ways to compute all prefixes of an associative operator, on a line of elements, in place.

Every algorithm finds ``x[t]`` in ``y[t]`` and leaves ``x[0] ∘ x[1] ∘ … ∘ x[t]`` there. It combines neighbouring spans
only and never swaps them, so the operator need not commute. One call of `op` combines many pairs: they do not depend on
each other and could run side by side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

from linscan._arrays import Array


class Line:
    """Arrays seen as one line of elements: indexing runs along time, in every array at once."""

    def __init__(self, arrays: Sequence[Array], axes: Sequence[int]) -> None:
        self.arrays, self.axes = arrays, axes

    def __len__(self) -> int:
        return self.arrays[0].shape[self.axes[0]]

    def __getitem__(self, times: slice) -> "Line":
        return Line([x[(slice(None),) * i + (times,)] for x, i in zip(self.arrays, self.axes, strict=True)], self.axes)

    def __setitem__(self, times: slice, new: "Line") -> None:
        for old, x in zip(self[times].arrays, new.arrays, strict=True):
            old[...] = x

    def copy(self) -> "Line":
        return Line([x.copy() for x in self.arrays], self.axes)


Op = Callable[[Line, Line], Line]


def sequential(op: Op, y: Line) -> None:
    """One after the other: the least work there is, and nothing at the same time."""
    for t in range(1, len(y)):
        y[t : t + 1] = op(y[t - 1 : t], y[t : t + 1])


def hillis_steele(op: Op, y: Line) -> None:
    """After the step with distance d, ``y[t]`` covers the last 2d elements up to t. Fewest steps, most work."""
    distance = 1
    while distance < len(y):
        y[distance:] = op(y[:-distance], y[distance:])
        distance *= 2


def blelloch(op: Op, y: Line) -> None:
    """Up a binary tree, combining pairs, then down it, filling in the prefixes between.

    Nodes past the end are left out. This inclusive form needs no neutral element: an operator may not have one.
    """
    n, half = len(y), 1
    while 2 * half <= n:  # up: every node takes in its left neighbour
        y[2 * half - 1 :: 2 * half] = op(y[half - 1 : n - half : 2 * half], y[2 * half - 1 :: 2 * half])
        half *= 2
    while half >= 1:  # down: a finished prefix completes the node half a stride to its right
        if 3 * half <= n:
            y[3 * half - 1 :: 2 * half] = op(y[2 * half - 1 : n - half : 2 * half], y[3 * half - 1 :: 2 * half])
        half //= 2


def chunked(op: Op, y: Line) -> None:
    """Reduce every chunk to one element, scan those, and scan every chunk again from what came before it."""
    size = _chunk_size(len(y))
    totals = _reduce_chunks(op, y, size)
    sequential(op, totals)
    if len(totals):
        y[size::size] = op(totals, y[size::size])
    _scan_chunks(op, y, size)


def lookback(op: Op, y: Line, awake: Callable[[int, int], bool] = lambda block, tick: True) -> None:
    """Decoupled look-back, simulated: a block publishes its total, then looks back until it finds a finished prefix.

    `awake` says which blocks the hardware lets run at which tick; the answer must not depend on it.
    """
    size = _chunk_size(len(y))
    totals = _reduce_chunks(op, y, size)
    blocks = [_Block(totals[k : k + 1], k - 1) for k in range(len(totals))] + [_Block(None, len(totals) - 1)]
    tick = 0
    while any(block.flag != PREFIX for block in blocks):
        seen = [block.flag for block in blocks]  # within a tick, every block reads before any of them writes
        for k, block in enumerate(blocks):
            if block.flag != PREFIX and awake(k, tick):
                _advance(op, block, blocks, seen)
        tick += 1
    for k, block in enumerate(blocks):
        if block.carry is not None:
            first = slice(k * size, k * size + 1)
            y[first] = op(block.carry, y[first])
    _scan_chunks(op, y, size)


NOTHING, AGGREGATE, PREFIX = range(3)  # what a block has published


@dataclass
class _Block:
    aggregate: Line | None  # the block's own elements, combined; the last block's is asked for by nobody
    look: int  # the predecessor to look at next
    flag: int = NOTHING
    carry: Line | None = None  # everything from the last predecessor looked at up to this block
    prefix: Line | None = None  # everything up to this block's end


def _advance(op: Op, block: _Block, blocks: list[_Block], seen: list[int]) -> None:
    if block.look < 0:  # the first block, or nothing before it: its aggregate is its prefix
        block.prefix, block.flag = block.aggregate, PREFIX
        return
    if block.flag == NOTHING:
        block.flag = AGGREGATE
        return
    other, flag = blocks[block.look], seen[block.look]
    found = {NOTHING: None, AGGREGATE: other.aggregate, PREFIX: other.prefix}[flag]
    if found is None:
        return  # wait: blocks start in order, so the one waited for is running
    block.carry = found if block.carry is None else op(found, block.carry)
    block.look -= 1
    if flag == PREFIX:
        block.flag = PREFIX
        block.prefix = None if block.aggregate is None else op(block.carry, block.aggregate)


def _chunk_size(n: int) -> int:
    return isqrt(n - 1) + 1 if n > 1 else 1  # the square root, rounded up: as many chunks as a chunk has elements


def _reduce_chunks(op: Op, y: Line, size: int) -> Line:
    """Every chunk but the last as one element; ``y[j::size]`` is element j of every chunk."""
    stop = (len(y) - 1) // size * size if len(y) else 0
    totals = y[0:stop:size]
    if len(totals):
        for j in range(1, size):
            totals = op(totals, y[j:stop:size])
    return totals


def _scan_chunks(op: Op, y: Line, size: int) -> None:
    for j in range(1, min(size, len(y))):
        y[j::size] = op(y[j - 1 : len(y) - 1 : size], y[j::size])


ALGORITHMS: dict[str, Callable[[Op, Line], None]] = {
    "sequential": sequential,
    "hillis_steele": hillis_steele,
    "blelloch": blelloch,
    "chunked": chunked,
    "lookback": lookback,
}
