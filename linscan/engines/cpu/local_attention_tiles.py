"""What one thread of `local_attention` works on: some blocks of queries of one row, and the tiles of keys they see."""

from typing import Any, NamedTuple

import numpy as np

from linscan._arrays import Array, accum_dtype

_PRODUCT = 1 << 18  # multiply-adds below which the BLAS stays on its thread
_SCORES = 1 << 18  # scores of a chunk: they stay in the cache


class Plan(NamedTuple):
    """How one row is cut."""

    block: int  # queries of a block, keys of a tile
    blocks: int  # blocks of a chunk
    before: int  # tiles before a block's own that it sees
    tiles: int  # tiles that a block sees
    unit: int  # chunks that a pullback adds up before it hands over: as many as make a window
    window: int


def plan_of(q: Array, k: Array, v: Array, window: int, causal: bool) -> Plan:
    length, width = q.shape[-2], max(1, q.shape[-1], v.shape[-1])
    window = min(window, k.shape[-2] + 1)
    block = 8
    while block < 64 and 2 * block <= max(length, 8) and 4 * block <= window and 4 * block**2 * width <= _PRODUCT:
        block *= 2
    before = -(-(window - 1) // block)
    tiles = before + 1 if causal else 2 * before + 1
    blocks = max(1, min(-(-length // block), _SCORES // (tiles * block**2)))
    return Plan(block, blocks, before, tiles, max(1, -(-window // (block * blocks))), window)


class Chunk:
    """Some blocks of queries of one row and the tiles that they see, copied, padded and in the arithmetic's dtype.

    A stack of tiles ``x[j : j + blocks]`` holds what each block sees at its j-th tile.
    """

    def __init__(self, plan: Plan, causal, scale, chunk, q, k, v, g, own, seen) -> None:
        size, self.plan, self.causal, self.scale = plan.block, plan, causal, scale
        self.compute, past = accum_dtype(q.dtype), len(k) - len(q)
        self.start = chunk * size * plan.blocks
        self.stop = min(len(q), self.start + size * plan.blocks)
        self.blocks = -(-(self.stop - self.start) // size)
        self.first = past + self.start - plan.before * size  # the key that the tiles begin with, maybe before all keys
        self.count = self.blocks + plan.tiles - 1
        self.q = self.queries(q) * self.compute.type(scale)
        self.k, self.v = self.keys(k), self.keys(v)
        self.own = self.seen = self.level = None
        if own is not None or self.first < 0 or self.first + self.count * size > len(k):
            self.own = self.queries(np.zeros(len(q), np.int32) if own is None else own)
            self.seen = self.keys(np.zeros(len(k), np.int32) if seen is None else seen, -1)
        if g is not None:  # differences of these are sums of gates: few terms, in double
            self.level = np.cumsum(self.keys(g, dtype=np.float64).ravel()).reshape(self.count, 1, size)

    def queries(self, x: Array, fill: float = 0) -> Array:
        return self._stack(x, self.start, self.blocks, fill, x.dtype if x.dtype == np.int32 else self.compute)

    def keys(self, x: Array, fill: int = 0, dtype: Any = None) -> Array:
        dtype = dtype or (x.dtype if x.dtype == np.int32 else self.compute)
        return self._stack(x, self.first, self.count, fill, dtype)

    def _stack(self, x: Array, start: int, count: int, fill: float, dtype: Any) -> Array:
        stack = np.full((count * self.plan.block, *x.shape[1:]), fill, dtype)
        lo, hi = max(start, 0), min(start + len(stack), len(x))
        stack[lo - start : max(hi, lo) - start] = x[lo : max(hi, lo)]
        return stack.reshape(count, self.plan.block, *x.shape[1:])

    def at(self, x: Array, j: int) -> Array:
        return x[j : j + self.blocks]

    def scores(self) -> Array:
        """(tiles, blocks, block, block), -inf where a key is not seen."""
        size, turned = self.plan.block, np.ascontiguousarray(self.k.swapaxes(1, 2))
        s = np.empty((self.plan.tiles, self.blocks, size, size), self.compute)
        for j in range(len(s)):
            np.matmul(self.q, self.at(turned, j), out=s[j])
            if self.level is not None:
                s[j] += self.sign(j) * (self.at(self.level, self.plan.before).swapaxes(1, 2) - self.at(self.level, j))
            self.hide(s[j], j, -np.inf)
        return s

    def hide(self, x: Array, j: int, value: float) -> None:
        """Put `value` where a query does not see the key of tile j."""
        lag = self.lag(j)
        outside = (np.abs(lag) >= self.plan.window) | (self.causal & (lag < 0))
        if outside.any():
            np.copyto(x, value, where=outside)
        if self.own is not None:
            np.copyto(x, value, where=self.own[:, :, None] != self.at(self.seen, j)[:, None])

    def lag(self, j: int) -> Array:
        step = np.arange(self.plan.block)
        return (self.plan.before - j) * self.plan.block + step[:, None] - step

    def sign(self, j: int) -> Array:
        return np.where(self.lag(j) < 0, -1.0, 1.0)
