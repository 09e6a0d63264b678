"""Chunks of sequences whose state is a matrix: buffers, decay tables and decayed triangles, inside kernels.

A chunk is CHUNK steps in blocks of BLOCK. What a kernel works on is copied into buffers whose rows are padded to whole
tiles of `gemm`. The decay between two steps is the product of the decays until the end of the first's block, of the
whole blocks between (e^ of their sums), and since the beginning of the second's: all factors are at most 1 unless g is
positive, none is a quotient, and -inf is an exact 0.
"""

import math

import numpy as np

from linscan.engines.cpu.chunk_vectors import dot
from linscan.engines.cpu.gemm import COLUMNS, apart
from linscan.engines.cpu.jit import jit
from linscan.engines.cpu.simd import LANES

CHUNK, BLOCK = 64, LANES


def heads(x, lead):
    """`x` as (its own heads, …, …), contiguous, and for every head of `lead` which of them it is."""
    own = x.shape[:-2]
    index = np.arange(math.prod(own)).reshape(own)
    flat = np.ascontiguousarray(x).reshape(index.size, *x.shape[-2:])
    return flat, np.broadcast_to(index, lead).reshape(-1)


def padded(n):
    """`n` rounded up to whole tiles, and at least one."""
    return -(-max(1, n) // COLUMNS) * COLUMNS


def decay_tables(g, length):
    """For one head's g (T, 1) or (T, K): e^g, e^ of the sums of blocks and chunks, and which chunks could overflow."""
    count = -(-length // CHUNK)
    sums, bad = np.zeros((count, CHUNK // BLOCK + 1, g.shape[1]), g.dtype), np.zeros(count, np.bool_)
    _sums(g, sums, bad, np.zeros(g.shape[1], g.dtype), np.log(np.finfo(g.dtype).max) / 2)
    with np.errstate(all="ignore"):
        return np.exp(g), np.exp(sums), bad


@jit
def _sums(g, sums, bad, up, limit):
    for t in range(len(g)):
        c = t // CHUNK
        if t % CHUNK == 0:
            up[:] = 0
        row, block, chunk = g[t], sums[c, t % CHUNK // BLOCK], sums[c, CHUNK // BLOCK]
        for d in range(len(row)):
            block[d] += row[d]
            chunk[d] += row[d]
            up[d] += 0 if row[d] <= 0 else row[d]  # NaN counts
        if t % CHUNK == CHUNK - 1 or t == len(g) - 1:
            for d in range(len(up)):
                if not up[d] < limit:
                    bad[c] = True


@jit
def load(x, lo, to, factor, rest):
    """Rows from `lo` on, times `factor`, into a buffer, and `rest` into those of its rows that have none."""
    apart()
    for t in range(len(to)):
        out = to[t]
        if lo + t < len(x):
            row = x[lo + t]
            for d in range(len(row)):
                out[d] = row[d] * factor
        else:
            out[:] = rest


@jit
def store(x, factor, out, lo, zeros):
    """The buffer `x`, times `factor`, into rows from `lo` on; whether all is finite."""
    apart()
    poison = zeros[0]
    for t in range(min(len(x), len(out) - lo)):
        row, to = x[t], out[lo + t]
        for j in range(len(to)):
            to[j] = row[j] * factor
        poison += dot(row, zeros)
    return poison == 0


@jit
def turn(x, to):
    """The transpose of a buffer, by squares that stay in the cache."""
    apart()
    for i in range(0, x.shape[0], LANES):
        for j in range(x.shape[1]):
            out = to[j]
            for s in range(LANES):
                out[i + s] = x[i + s, j]


@jit
def edges(e, since, until):
    """Decay since a block's beginning, its own step included, and until the block's end, its own left out.

    `e` is a chunk of e^g, 1 where it has no step.
    """
    apart()
    for t in range(CHUNK):
        now, before, row = since[t], since[max(0, t - 1)], e[t]
        for d in range(len(now)):
            now[d] = row[d] if t % BLOCK == 0 else before[d] * row[d]
    for t in range(CHUNK - 1, -1, -1):
        later = min(CHUNK - 1, t + 1)
        now, after, row = until[t], until[later], e[later]
        for d in range(len(now)):
            now[d] = 1 if t % BLOCK == BLOCK - 1 else after[d] * row[d]


@jit
def widen(since, until, totals, first, last):
    """The two of `edges` for blocks made those of the chunk; `first` and `last` are rows to work in."""
    apart()
    _grow(since, totals, first, 1)
    _grow(until, totals, last, -1)


@jit
def _grow(x, totals, so_far, turn):
    """Rows of `x`, from one end or the other, times the whole blocks passed by then."""
    apart()
    so_far[:] = 1
    for i in range(CHUNK):
        t = i if turn > 0 else CHUNK - 1 - i
        row = x[t]
        if i and i % BLOCK == 0:
            total = totals[t // BLOCK - turn]
            for d in range(len(total)):
                so_far[d] *= total[d]
        for d in range(len(row)):
            row[d] *= so_far[d]


@jit
def triangle(e, since, until, totals, w, left):
    """One decay per step: ``w[t, s]`` from s to t for s <= t; zero above the diagonal as far as blocks on it reach."""
    apart()
    for t in range(CHUNK):
        row, before, factor, at = w[t], w[max(0, t - 1)], since[t, 0], t // BLOCK * BLOCK
        for s in range(at):
            row[s] = factor * left[s]
        for s in range(at, t):
            row[s] = before[s] * e[t, 0]
        row[t] = 1
        for s in range(t + 1, at + BLOCK):
            row[s] = 0
        if t == at + BLOCK - 1:
            for s in range(at):
                left[s] *= totals[t // BLOCK, 0]
            for s in range(at, t + 1):
                left[s] = until[s, 0]
