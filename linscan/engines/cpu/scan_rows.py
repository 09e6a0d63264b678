"""Scan kernels for rows that are contiguous in time: eight steps at once, whatever is left over one by one.

Arrays are indexed flat and unsigned: a signed index costs a test for negative values at every access. Each kernel
takes rows of `length` stored one after the other, and runs them in the order that makes memory one rising or falling
stream.
"""

import numpy as np

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.scan_lanes import (
    back8_backward,
    back8_forward,
    reduce8_backward,
    reduce8_forward,
    scan8_backward,
    scan8_forward,
)
from linscan.engines.cpu.simd import LANES


@jit
def _steps(a, b, h, p, n, step, c):
    """`n` plain steps from flat position `p` on. A literal `n` would be compiled for by itself."""
    for _ in range(n):
        c = a[p] * c + b[p]
        h[p] = c
        p += step
    return c


@jit
def rows(a, b, h, state, length, reverse):
    """``h[t] = a[t] h[t-1] + b[t]``; `state` (R,) goes from initial to final."""
    mode = flush_subnormals()
    lanes, less = np.uintp(LANES), np.uintp(LANES - 1)
    step = np.uintp(0) - np.uintp(1) if reverse else np.uintp(1)
    for i in range(state.size):
        r = state.size - 1 - i if reverse else i
        p, c = np.uintp(r * length + (length - 1 if reverse else 0)), state[r]
        for _ in range(length // LANES):
            if reverse:
                fine, prod, local = scan8_backward(a, b, h, p - less, c)
            else:
                fine, prod, local = scan8_forward(a, b, h, p, c)
            if fine:
                c = prod * c + local
            else:
                c = _steps(a, b, h, p, np.int64(LANES), step, c)
            p += lanes * step
        state[r] = _steps(a, b, h, p, length % LANES, step, c)
    restore_subnormals(mode)


@jit
def rows_reset(a, b, starts, h, state, length, reverse):
    """The same, forgetting the state before each step that `starts`."""
    mode = flush_subnormals()
    for r in range(state.size):
        c = state[r]
        for i in range(length):
            p = np.uintp(r * length + (length - 1 - i if reverse else i))
            c = b[p] if starts[p] else a[p] * c + b[p]
            h[p] = c
        state[r] = c
    restore_subnormals(mode)


@jit
def _steps_back(a, h, dh, da, db, p, n, step, c):
    for _ in range(n):
        c = np.conj(a[p - step]) * c + dh[p]
        db[p] = c
        da[p] = np.conj(h[p + step]) * c
        p += step
    return c


@jit
def rows_back(a, h, dh, first, da, db, flow, length, reverse):
    """The pullback: against the direction of the scan; `flow` is ``conj(a[t+1]) δ[t+1]``, `first` the state before."""
    mode = flush_subnormals()
    one, lanes, less = np.uintp(1), np.uintp(LANES), np.uintp(LANES - 1)
    step = one if reverse else np.uintp(0) - one
    for i in range(flow.size):
        r = i if reverse else flow.size - 1 - i
        p = np.uintp(r * length if reverse else (r + 1) * length - 1)
        c = dh[p] + flow[r]
        db[p] = c
        if length > 1:
            da[p] = np.conj(h[p + step]) * c
            p += step
            for _ in range((length - 2) // LANES):
                if reverse:
                    fine, prod, local = back8_forward(a, h, dh, da, db, p, c)
                else:
                    fine, prod, local = back8_backward(a, h, dh, da, db, p - less, c)
                if fine:
                    c = prod * c + local
                else:
                    c = _steps_back(a, h, dh, da, db, p, np.int64(LANES), step, c)
                p += lanes * step
            rest = (length - 2) % LANES
            c = _steps_back(a, h, dh, da, db, p, rest, step, c)
            p += np.uintp(rest) * step
            c = np.conj(a[p - step]) * c + dh[p]
            db[p] = c
        da[p] = np.conj(first[r]) * c
        flow[r] = np.conj(a[p]) * c
    restore_subnormals(mode)


@jit
def rows_reset_back(a, h, dh, starts, first, da, db, flow, length, reverse):
    """The same with resets: nothing flows back over the start of a sequence, and its `a` has no effect."""
    mode = flush_subnormals()
    zero = flow.dtype.type(0)
    for r in range(flow.size):
        c = flow[r]
        for i in range(length):
            p = np.uintp(r * length + (i if reverse else length - 1 - i))
            before = np.uintp(p + 1 if reverse else p - 1)
            delta = dh[p] + c
            db[p] = delta
            if starts[p]:
                da[p] = zero
                c = zero
            else:
                da[p] = np.conj(h[before] if i < length - 1 else first[r]) * delta
                c = np.conj(a[p]) * delta
        flow[r] = c
    restore_subnormals(mode)


@jit
def blocks(a, b, h, carries, size, lo, hi, reverse):
    """Blocks `lo` to `hi` (in scan order, `size` steps each) of one row; sets the state after each from the one before.

    That state is the block's composed map applied to the state before it, so that it comes out the same, to the bit,
    where the maps were composed ahead of time by `reduce_blocks`. A map that is not finite is not used.
    """
    mode = flush_subnormals()
    down = np.uintp(0) - np.uintp(1)
    lanes, less = np.uintp(LANES), np.uintp(LANES - 1)
    for k in range(lo, hi):
        n = min(size, a.size - k * size)
        c = start = carries[k]
        whole, total = a.dtype.type(1), a.dtype.type(0)
        p = np.uintp(a.size - 1 - k * size if reverse else k * size)
        usable = n % LANES == 0
        for _ in range(n // LANES):
            if reverse:
                fine, prod, local = scan8_backward(a, b, h, p - less, c)
            else:
                fine, prod, local = scan8_forward(a, b, h, p, c)
            if fine:
                c = prod * c + local
                whole, total = prod * whole, prod * total + local
            else:
                c = _steps(a, b, h, p, np.int64(LANES), down if reverse else np.uintp(1), c)
                usable = False
            p = p - lanes if reverse else p + lanes
        c = _steps(a, b, h, p, n % LANES, down if reverse else np.uintp(1), c)
        if usable and np.isfinite(whole) and np.isfinite(total):
            c = whole * start + total
        carries[k + 1] = c
    restore_subnormals(mode)


@jit
def reduce_blocks(a, b, maps, size, lo, hi, reverse):
    """The composed maps of blocks `lo` to `hi`, ``maps[k] = (prod, local)``; NaN where `blocks` would not use one."""
    mode = flush_subnormals()
    lanes, less = np.uintp(LANES), np.uintp(LANES - 1)
    for k in range(lo, hi):
        whole, total = a.dtype.type(1), a.dtype.type(0)
        p = np.uintp(a.size - 1 - k * size if reverse else k * size)
        usable = True
        for _ in range(size // LANES):
            if reverse:
                fine, prod, local = reduce8_backward(a, b, p - less)
            else:
                fine, prod, local = reduce8_forward(a, b, p)
            usable = usable and fine
            whole, total = prod * whole, prod * total + local
            p = p - lanes if reverse else p + lanes
        maps[k, 0] = whole if usable else np.nan
        maps[k, 1] = total
    restore_subnormals(mode)


@jit
def chain_blocks(maps, carries, lo, hi):
    """The states after blocks `lo` on, until a map cannot be used; returns that block, or `hi`."""
    mode = flush_subnormals()
    k = lo
    while k < hi and np.isfinite(maps[k, 0]) and np.isfinite(maps[k, 1]):
        carries[k + 1] = maps[k, 0] * carries[k] + maps[k, 1]
        k += 1
    restore_subnormals(mode)
    return k
