"""The selective scan over tasks, and its pullback; a task is a row and a block of neighbouring channels of one group.

Time is taken in chunks of TIMES steps. What needs one number per step and channel (step sizes, gates) is first made for
a whole chunk, in tiles of (TIMES, width) numbers; lanes beyond the block's channels are zero.
"""

import numpy as np

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.selective_simd import advance, advance_steps, retreat
from linscan.engines.cpu.selective_tiles import (
    DDT,
    DU,
    DY,
    DZ,
    EXPONENT,
    GATE,
    STEP,
    U,
    Y,
    copy_rows,
    gate,
    shift,
    soften,
)
from linscan.engines.cpu.selective_vectors import STEPS

TIMES = 32


@jit
def _place(task, shape):
    """Row and first channel of a task, number of its channels, its group and its block among those of a row."""
    groups, members, width = shape
    blocks = (members + width - 1) // width
    group, block = task // blocks % groups, task % blocks
    first = group * members + block * width
    return task // (blocks * groups), first, min(width, members - block * width), group, group * blocks + block


@jit
def _load(sequences, shifts, resets, tiles, coef, is_soft, where, width):
    """Tiles of a chunk that begins `where`: row and time as one number, its direction, channels, steps, block.

    Returns the tile of the exponents' step sizes.
    """
    (dt, u, z), (real, full, zeros), (t, turn, first, count, steps, block) = sequences, tiles, where
    place, stride, area, d = t * u.shape[2] + first, turn * u.shape[2], real.shape[1], block * width
    copy_rows(dt, place, stride, real, STEP * area, width, count, steps)
    copy_rows(u, place, stride, full, U * area, width, count, steps)
    if is_soft:
        soften(real, shifts, coef, d, steps, width)
    else:
        shift(real, shifts, coef, d, steps, width)
    if len(z):
        copy_rows(z, place, stride, real, GATE * area, width, count, steps)
        gate(real, zeros, coef, 0, steps, width)
    if len(resets) == 0:
        return STEP
    copy_rows(real, STEP * area, width, real, EXPONENT * area, width, width, steps)
    for k in range(steps):
        if resets[t + k * turn]:
            copy_rows(zeros, 0, 0, real, EXPONENT * area + k * width, 0, width, 1)
    return EXPONENT


@jit
def forward(sequences, vectors, blocks, resets, y, kept, every, states, tiles, coef, shape, flags, lo, hi):
    """Tasks `lo` to `hi`: `states` go from initial to final; `kept` takes those before each chunk, `every` all."""
    mode = flush_subnormals()
    (_, u, _), (B, C), (A, _, D, shifts), (real, full, zeros, none) = sequences, vectors, blocks, tiles
    groups, _, width = shape
    is_soft, reverse = flags
    (_, length, channels), (_, lines, n, lanes), area = u.shape, A.shape, real.shape[1]
    size, turn = lines * n * lanes, -1 if reverse else 1
    for task in range(lo, hi):
        row, first, count, group, block = _place(task, shape)
        if count < width:
            copy_rows(none, 0, 0, full, count, width, width - count, full.shape[0] * TIMES)
            copy_rows(zeros, 0, 0, real, count, width, width - count, real.shape[0] * TIMES)
        for start in range(0, length, TIMES):
            steps, t = min(TIMES, length - start), row * length + (length - 1 - start if reverse else start)
            at, stride, d = t * channels + first, turn * channels, block * width
            if len(kept):
                copy_rows(states, task * size, 0, kept, (task * kept.shape[1] + start // TIMES) * size, 0, size, 1)
            where = t, turn, first, count, steps, block
            exponent = _load(sequences, shifts, resets, (real, full, zeros), coef, is_soft, where, width)
            dq, k, at_once = turn * groups * n, 0, 1
            while k < steps:
                if len(resets) and resets[t + k * turn]:
                    copy_rows(none, 0, 0, states, task * size, 0, size, 1)
                at_once = STEPS if len(every) == 0 and k + STEPS <= steps else 1
                for i in range(1, at_once if len(resets) else 1):
                    at_once = 1 if resets[t + (k + i) * turn] else at_once
                q = ((t + k * turn) * groups + group) * n
                for m in range(lines):
                    p, i, s = k * width + m * lanes, (block * lines + m) * n * lanes, task * size + m * n * lanes
                    v = d + m * lanes
                    if at_once == 1:
                        advance(
                            real, full, A, D, states, states, B, C, coef, (), exponent, p, i, v, s, s, q, n, width, dq
                        )
                    else:
                        advance_steps(
                            real, full, A, D, states, states, B, C, coef, (), exponent, p, i, v, s, s, q, n, width, dq
                        )
                if len(every):
                    _spread(states[task], every[t + k * turn], first, count, lanes)
                k += at_once
            copy_rows(full, Y * area, width, y, at, stride, count, steps)
    restore_subnormals(mode)


@jit
def _spread(state, target, first, count, lanes):
    """The states of a block as (channels, n)."""
    n = target.shape[1]
    for c in range(count):
        for i in range(n):
            target[first + c, i] = state[(c // lanes * n + i) * lanes + c % lanes]


@jit
def backward(sequences, vectors, blocks, resets, kept, dy, grads, shares, flow, tiles, coef, shape, flags, lo, hi):
    """Tasks `lo` to `hi`: `flow` is ``conj(a[t+1]) λ[t+1]``, from the cotangents of the final states to dh0."""
    mode = flush_subnormals()
    (_, u, z), (B, C), (A2, A, D, shifts), (real, full, zeros, none, h, a) = sequences, vectors, blocks, tiles
    (du, ddt, dz), (dA, dB, dC, dD) = grads, shares
    groups, _, width = shape
    is_soft, reverse = flags
    (_, length, channels), (_, lines, n, lanes), area = u.shape, A.shape, real.shape[1]
    size, turn = n * lanes, -1 if reverse else 1
    for task in range(lo, hi):
        row, first, count, group, block = _place(task, shape)
        if count < width:
            copy_rows(none, 0, 0, full, count, width, width - count, full.shape[0] * TIMES)
            copy_rows(zeros, 0, 0, real, count, width, width - count, real.shape[0] * TIMES)
        for chunk in range(kept.shape[1] - 1, -1, -1):
            start = chunk * TIMES
            steps, t = min(TIMES, length - start), row * length + (length - 1 - start if reverse else start)
            at, stride, d = t * channels + first, turn * channels, block * width
            where = t, turn, first, count, steps, block
            exponent = _load(sequences, shifts, resets, (real, full, zeros), coef, is_soft, where, width)
            copy_rows(dy, at, stride, full, DY * area, width, count, steps)
            for m in range(lines):
                i, s, v = (block * lines + m) * size, (task * lines + m) * size, d + m * lanes
                copy_rows(kept, ((task * kept.shape[1] + chunk) * lines + m) * size, 0, h, 0, 0, size, 1)
                for k in range(steps):
                    q, p = ((t + k * turn) * groups + group) * n, k * width + m * lanes
                    before, j = (none, 0) if len(resets) and resets[t + k * turn] else (h, k * size)
                    advance(
                        real, full, A2, D, before, h, B, C, coef, (a,), exponent, p, i, v, j, (k + 1) * size, q, n, 0, 0
                    )
                for k in range(steps - 1, -1, -1):
                    q, p = ((t + k * turn) * groups + group) * n, k * width + m * lanes
                    fresh = np.int64(len(resets) > 0 and resets[t + k * turn])
                    share = (task * length + t - row * length + k * turn) * n
                    retreat(
                        real, full, A, D, h, a, flow, dA, dB, dC, dD, B, C, coef,
                        exponent, fresh, p, i, v, s, task * width + m * lanes, k * size, q, share, n,
                    )  # fmt: skip
            copy_rows(full, DU * area, width, du, at, stride, count, steps)
            copy_rows(real, DDT * area, width, ddt, at, stride, count, steps)
            if len(z):
                copy_rows(real, DZ * area, width, dz, at, stride, count, steps)
    restore_subnormals(mode)
