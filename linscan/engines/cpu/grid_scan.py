"""Recurrences on a grid on the CPU: one key channel after the other, cell by cell, all value channels as a vector.

The channels of a matrix state do not meet before a query reads them. So the states of one key channel are a row of the
grid by a few value channels and stay in the cache; threads take grids, and groups of value channels in them. A pullback
keeps what came in at every cell of one key channel, and no more.
"""

from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu.grid_simd import cell_back
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.cpu.simd import LANES
from linscan.engines.reference.grid_scan import own_cells, own_cells_pullback

_WIDTH = 64  # value channels of a group
_GRAIN = 1 << 15  # multiply-adds a thread must get for its hand-over to pay


@np.errstate(all="ignore")
def grid_scan(q, k, v, transition, source, mark, direct, r0, d0, *, workers):
    """See `linscan.ops.grid_scan.grid_scan`; all axes in full."""
    dtype, compute = q.dtype, accum_dtype(q.dtype)
    q, k, v = (x.astype(compute, copy=False) for x in (q, k, v))
    given = [_gates(transition, source, mark, compute), _channels(q), _channels(k), _cells(v)]
    o, r, d = _cells(own_cells(q, k, v, direct)), _states(r0, compute), _states(d0, compute)
    _share(lambda lo, hi: _forward(*given, o, r, d, len(o) // max(1, len(given[0])), lo, hi), o, q, workers)
    found = _cells_back(o, v.shape), _states_back(r, r0.shape), _states_back(d, d0.shape)
    return tuple(x.astype(dtype, copy=False) for x in found)


@np.errstate(all="ignore")
def grid_scan_pullback(q, k, v, transition, source, mark, direct, r0, d0, do, dr, dd, *, workers):
    """See `linscan.ops.grid_scan.grid_scan_vjp`; all axes in full."""
    dtype, compute = q.dtype, accum_dtype(q.dtype)
    q, k, v, do = (x.astype(compute, copy=False) for x in (q, k, v, do))
    dq, dk, dv, ddirect = own_cells_pullback(q, k, v, direct, do)
    given = [_gates(transition, source, mark, compute), _channels(q), _channels(k), _cells(v), _cells(do)]
    states = [_states(x, compute) for x in (r0, d0, dr, dd)]
    groups = len(given[3]) // max(1, len(given[0]))
    sums = [np.zeros((len(x), groups, *x.shape[1:]), compute) for x in given[:3]]
    dvs = np.zeros_like(given[3])
    _share(lambda lo, hi: _backward(*given, *states, *sums, dvs, groups, lo, hi), dvs, q, workers)
    dgates, dqs, dks = (x.sum(1) for x in sums)  # over groups of value channels, in one order
    dgates = dgates.reshape(*q.shape[:-1], 8)
    grads = [dq + dqs.swapaxes(1, 2).reshape(q.shape), dk + dks.swapaxes(1, 2).reshape(q.shape)]
    grads += [dv + _cells_back(dvs, v.shape), dgates[..., :4].reshape(transition.shape)]
    grads += [dgates[..., 4:6], dgates[..., 6:], ddirect]
    grads += [_states_back(x, like.shape) for x, like in zip(states[2:], (r0, d0), strict=True)]
    return tuple(None if x is None else x.astype(dtype, copy=False) for x in grads)


def _share(body: Any, o: Array, q: Array, workers: Any) -> None:
    if o.size and q.size:
        grain = max(1, _GRAIN // (8 * o[0].size * q.shape[-1]))
        parallel_for(body, len(o), grain=grain, workers=workers)


def _grids(x: Array) -> int:
    return int(np.prod(x.shape[:-3], dtype=np.intp))


def _gates(transition: Array, source: Array, mark: Array, dtype: np.dtype) -> Array:
    """(grids, cells, 8): what a cell multiplies with, side by side."""
    turns = [transition[..., a, b][..., None] for a in (0, 1) for b in (0, 1)]
    cells = source.shape[-3] * source.shape[-2]
    return np.concatenate([*turns, source, mark], -1, dtype=dtype).reshape(_grids(source), cells, 8)


def _channels(x: Array) -> Array:
    """(grids, K, cells)."""
    x = x.reshape(_grids(x), x.shape[-3] * x.shape[-2], x.shape[-1])
    return np.ascontiguousarray(x.swapaxes(1, 2))


def _cells(x: Array) -> Array:
    """(grids × groups, cells, channels of a group); the same memory where it lies like that."""
    x = x.reshape(_grids(x), x.shape[-3] * x.shape[-2], x.shape[-1])
    if x.shape[-1] == _width(x.shape[-1]):
        return np.ascontiguousarray(x)
    grouped = _grouped(x, x.dtype).swapaxes(1, 2).copy()
    return grouped.reshape(len(x) * grouped.shape[1], *grouped.shape[2:])


def _cells_back(x: Array, shape: tuple[int, ...]) -> Array:
    grids, cells = int(np.prod(shape[:-3], dtype=np.intp)), shape[-3] * shape[-2]
    x = x.reshape(grids, _groups(shape[-1]), cells, _width(shape[-1])).swapaxes(1, 2)
    return x.reshape(grids, cells, _groups(shape[-1]) * _width(shape[-1]))[..., : shape[-1]].reshape(shape)


def _states(x: Array, dtype: np.dtype) -> Array:
    """(grids × groups, K, X or Y, channels of a group), a new array."""
    grouped = _grouped(x.reshape(_grids(x), *x.shape[-3:]), dtype).transpose(0, 3, 2, 1, 4).copy()
    return grouped.reshape(len(grouped) * grouped.shape[1], *grouped.shape[2:])


def _states_back(x: Array, shape: tuple[int, ...]) -> Array:
    grids, (length, keys, values) = int(np.prod(shape[:-3], dtype=np.intp)), shape[-3:]
    x = x.reshape(grids, _groups(values), keys, length, _width(values)).transpose(0, 3, 2, 1, 4)
    return x.reshape(grids, length, keys, _groups(values) * _width(values))[..., :values].reshape(shape)


def _grouped(x: Array, dtype: np.dtype) -> Array:
    """`x` with its value channels, and zeros up to whole vectors, as (groups, channels of a group)."""
    groups, width = _groups(x.shape[-1]), _width(x.shape[-1])
    y = np.zeros((*x.shape[:-1], groups * width), dtype)
    y[..., : x.shape[-1]] = x
    return y.reshape(*x.shape[:-1], groups, width)


def _groups(values: int) -> int:
    return -(-values // _WIDTH)


def _width(values: int) -> int:
    return min(_WIDTH, -(-values // LANES) * LANES)


@jit
def _forward(gates, q, k, v, o, r, d, groups, lo, hi):
    mode = flush_subnormals()
    for unit in range(lo, hi):
        g = unit // groups
        for i in range(r.shape[1]):
            for x in range(d.shape[2]):
                up = d[unit, i, x]
                for y in range(r.shape[2]):
                    c = x * r.shape[2] + y
                    w, qi, ki = gates[g, c], q[g, i, c], k[g, i, c]
                    rr, rd, dr, dd = w[0], w[1], w[2], w[3]
                    sr, sd, mr, md = w[4] * ki, w[5] * ki, w[6] * qi, w[7] * qi
                    left, vs, os = r[unit, i, y], v[unit, c], o[unit, c]
                    for j in range(len(up)):
                        a, b = left[j], up[j]
                        os[j] += mr * a + md * b
                        left[j] = rr * a + rd * b + sr * vs[j]
                        up[j] = dr * a + dd * b + sd * vs[j]
    restore_subnormals(mode)


@jit
def _backward(gates, q, k, v, do, r, d, dr, dd, dgates, dq, dk, dv, groups, lo, hi):
    mode = flush_subnormals()
    lefts, ups, sums = np.empty(v.shape[1:], v.dtype), np.empty(v.shape[1:], v.dtype), np.empty(8, v.dtype)
    for unit in range(lo, hi):
        g, h = unit // groups, unit % groups
        for i in range(r.shape[1]):
            for x in range(d.shape[2]):
                up = d[unit, i, x]
                for y in range(r.shape[2]):
                    c = x * r.shape[2] + y
                    w, ki = gates[g, c], k[g, i, c]
                    rr, rd, dl, du, sr, sd = w[0], w[1], w[2], w[3], w[4] * ki, w[5] * ki
                    left, vs, came, came_up = r[unit, i, y], v[unit, c], lefts[c], ups[c]
                    for j in range(len(up)):
                        a, b = left[j], up[j]
                        came[j], came_up[j] = a, b
                        left[j] = rr * a + rd * b + sr * vs[j]
                        up[j] = dl * a + du * b + sd * vs[j]
            for x in range(d.shape[2] - 1, -1, -1):
                for y in range(r.shape[2] - 1, -1, -1):
                    c = x * r.shape[2] + y
                    w, qi, ki, total = gates[g, c], q[g, i, c], k[g, i, c], dgates[g, h, c]
                    scaled = (w[0], w[1], w[2], w[3], w[4] * ki, w[5] * ki, w[6] * qi, w[7] * qi)
                    near = dr[unit, i, y], dd[unit, i, x], v[unit, c], do[unit, c], dv[unit, c]
                    cell_back(scaled, lefts[c], ups[c], near[0], near[1], near[2], near[3], near[4], sums)
                    for m in range(4):
                        total[m] += sums[m]
                        total[m + 4] += sums[m + 4] * (ki if m < 2 else qi)
                    dk[g, h, i, c] += w[4] * sums[4] + w[5] * sums[5]
                    dq[g, h, i, c] += w[6] * sums[6] + w[7] * sums[7]
    restore_subnormals(mode)
