"""The kernel of the scan: Blelloch's scan in shared memory for a tile of a row, and look-back from tile to tile.

A step of ``h[t] = a[t] h[t-1] + b[t]`` is the map ``h -> a h + b``. Maps compose to maps, and composing is associative:
that is what makes the recurrence parallel. A row is cut into tiles, and each tile goes to a block of its own:

1. every thread composes the maps of its own CHUNK neighbouring steps, one after the other;
2. the threads' composites are scanned in a balanced tree in shared memory: an up-sweep composes pairs, pairs of pairs,
   and so on up to the whole tile; a down-sweep hands every thread the composite of all threads before it;
3. the block tells the others what its whole tile does, and looks back: GROUP tiles form a group, and the composites of
   the group's tiles before this one, applied to the state that the group before left, are the state that enters here;
4. every thread applies what comes before it to that state, and runs its steps again from there.

A block waits for blocks only that took an earlier ticket, and those are running or done: none waits forever. Tickets go
through the first tiles of all rows, then the second ones. What is composed with what, and in which order, follows from
a tile's place alone, whoever comes first: bits do not depend on timing.

A reset cuts the past off by selection, not by a = 0: NaN and inf must not survive it. Where decays above 1 multiply
up, a composite overflows, or what it gives is the small difference of large numbers, although the plain loop may do
well: there one thread runs the tile in order, and tiles after it wait for the state that it really leaves.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import cuda

from linscan.engines.numba_cuda.affine import apply, compose, hand_down, is_finite, is_tame, join
from linscan.engines.numba_cuda.launch import GROUP, THREADS

CHUNK = 4  # steps of a thread
TILE = THREADS * CHUNK
NOTHING, MAP, CUT, WILD = 0, 1, 2, 3  # what is told of a tile: nothing yet, a map, one without a past, or none to use


@cuda.jit(device=True)
def run(a, b, cut, outer, inner, first, last, h, out, write):
    """The plain loop over steps first to last, from the state h; writes the states if asked."""
    for t in range(first, last):
        h = b[outer, t, inner] if cut[outer, t, inner] else a[outer, t, inner] * h + b[outer, t, inner]
        if write:
            out[outer, t, inner] = h
    return h


@cuda.jit(device=True)
def run_tile(a, b, cut, outer, inner, begin, h, out, starts):
    """The plain loop over a tile; notes the state each thread begins with, and returns the last one."""
    for k in range(THREADS):
        starts[k] = h
        own = min(begin + k * CHUNK, out.shape[1])
        h = run(a, b, cut, outer, inner, own, min(own + CHUNK, out.shape[1]), h, out, False)
    return h


@cuda.jit(device=True)
def tell(flags, slot, how):
    """Raise a flag, after all that this thread has written can be seen."""
    cuda.threadfence()
    cuda.atomic.exch(flags, slot, how)


@cuda.jit(device=True)
def wait(flags, slot):
    """Wait for a flag; what was written before it was raised may be read then. A plain read may see an old copy."""
    how = cuda.atomic.add(flags, slot, 0)
    while how == NOTHING:
        how = cuda.atomic.add(flags, slot, 0)
    cuda.threadfence()
    return how


@cuda.jit(device=True)
def next_slot(tickets, ticket, i):
    """The block's next tile."""
    if i == 0:
        ticket[0] = cuda.atomic.add(tickets, 0, 1)
    cuda.syncthreads()
    return ticket[0]


@cuda.jit(device=True)
def steps_map(a, b, cut, outer, inner, first, last, pa, pb):
    """The composite of steps first to last, after (pa, pb)."""
    pcut = False
    for t in range(first, last):
        pa, pb, pcut = compose(a[outer, t, inner], b[outer, t, inner], cut[outer, t, inner] != 0, pa, pb, pcut)
    return pa, pb, pcut


@cuda.jit(device=True)
def sweep(tree_a, tree_b, tree_cut, i, one, zero):
    """Blelloch's scan: a node becomes the composite of all nodes before it. Returns that of all."""
    cuda.syncthreads()
    step = 1
    while step < THREADS:  # up: node i becomes the composite of the 2 step threads that end with it
        if (i + 1) % (2 * step) == 0:
            join(tree_a, tree_b, tree_cut, i, i - step)
        step *= 2
        cuda.syncthreads()
    a, b, cut = tree_a[THREADS - 1], tree_b[THREADS - 1], tree_cut[THREADS - 1] != 0
    cuda.syncthreads()
    if i == THREADS - 1:
        tree_a[i], tree_b[i], tree_cut[i] = one, zero, False  # nothing comes before the tile
    cuda.syncthreads()
    step = THREADS // 2
    while step > 0:  # down
        if (i + 1) % (2 * step) == 0:
            hand_down(tree_a, tree_b, tree_cut, i, i - step)
        step //= 2
        cuda.syncthreads()
    return a, b, cut


@cuda.jit(device=True)
def ask(tree_a, tree_b, tree_how, i, slot, maps, told):
    """Put into node i what the tile of `slot` does, once that is told."""
    tree_how[i] = wait(told, slot)
    tree_a[i], tree_b[i] = maps[slot, 0], maps[slot, 1]


@cuda.jit(device=True)
def entering(tree_a, tree_b, tree_how, before, slot, rows, h0, states, left):
    """The state that enters a tile, from the maps of the `before` tiles of its group that come earlier."""
    pa, pb, pcut, good = tree_a[0], tree_b[0], tree_how[0] == CUT, tree_how[0] != WILD
    for j in range(1, before):
        pa, pb, pcut = compose(tree_a[j], tree_b[j], tree_how[j] == CUT, pa, pb, pcut)
        good = good and tree_how[j] != WILD and is_tame(pa, pb, pcut)
    last = slot - (before + 1) * rows  # of the group before, if there is one
    h = h0
    if last >= 0:
        wait(left, last)
        h = states[last]
    if before > 0:
        h = apply(pa, pb, pcut, h)
        if not (good and is_finite(h)):
            wait(left, slot - rows)
            h = states[slot - rows]
    return h


@cache
def kernel(dtype: np.dtype) -> Any:
    """The kernel for a dtype. Of tile k of a row, the slot is k rows + row; `told` and `left` are the slots' flags."""
    number, kind = numba.from_dtype(dtype), dtype.type

    @cuda.jit
    def scan_tiles(a, b, cut, first, h, tickets, maps, told, states, left):
        tree_a = cuda.shared.array(THREADS, number)  # a line each: by that the simulator tells them apart
        tree_b = cuda.shared.array(THREADS, number)
        tree_cut = cuda.shared.array(THREADS, numba.int32)
        ticket = cuda.shared.array(1, numba.int64)
        state = cuda.shared.array(1, number)
        i, rows, length, width = cuda.threadIdx.x, first.size, h.shape[1], h.shape[2]
        slot = next_slot(tickets, ticket, i)
        while slot < told.size:
            k, row = slot // rows, slot % rows
            outer, inner, begin = row // width, row % width, k * TILE
            own = min(begin + i * CHUNK, length)
            end = min(own + CHUNK, length)

            tree_a[i], tree_b[i], tree_cut[i] = steps_map(a, b, cut, outer, inner, own, end, kind(1), kind(0))
            wa, wb, wcut = sweep(tree_a, tree_b, tree_cut, i, kind(1), kind(0))
            pa, pb, pcut = tree_a[i], tree_b[i], tree_cut[i] != 0
            wild = cuda.syncthreads_or(0 if is_tame(pa, pb, pcut) and is_tame(wa, wb, wcut) else 1)
            if i == 0:
                maps[slot, 0], maps[slot, 1] = wa, wb
                tell(told, slot, WILD if wild else CUT if wcut else MAP)
            before = k % GROUP
            if i < before:
                ask(tree_a, tree_b, tree_cut, i, slot - (before - i) * rows, maps, told)
            cuda.syncthreads()
            if i == 0:
                state[0] = entering(tree_a, tree_b, tree_cut, before, slot, rows, first[row], states, left)
            cuda.syncthreads()
            start, after = apply(pa, pb, pcut, state[0]), apply(wa, wb, wcut, state[0])
            wild = cuda.syncthreads_or(0 if not wild and is_finite(start) and is_finite(after) else 1)
            if i == 0:
                states[slot] = run_tile(a, b, cut, outer, inner, begin, state[0], h, tree_b) if wild else after
                tell(left, slot, MAP)
            cuda.syncthreads()
            run(a, b, cut, outer, inner, own, end, tree_b[i] if wild else start, h, True)
            slot = next_slot(tickets, ticket, i)

    return scan_tiles
