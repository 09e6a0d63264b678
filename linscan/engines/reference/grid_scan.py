"""Recurrences on a grid, one antidiagonal of cells after the other, in array operations: the definition of `grid_scan`.

The cells of an antidiagonal do not depend on each other. `r` holds, for each y, the state last sent on in x, and `d`,
for each x, the state last sent on in y: at a cell they are what comes in.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype, namespace

_ALL = slice(None)


@np.errstate(all="ignore")
def grid_scan(
    q: Array, k: Array, v: Array, transition: Array, source: Array, mark: Array, direct: Any, r0: Array, d0: Array,
    *, workers: Any,
) -> tuple[Any, ...]:  # fmt: skip
    dtype, compute = q.dtype, accum_dtype(q.dtype)
    q, k, v, transition, source, mark = (x.astype(compute, copy=False) for x in (q, k, v, transition, source, mark))
    o, r, d = own_cells(q, k, v, direct), r0.astype(compute), d0.astype(compute)
    for (*_, cell), came in _run(k, v, transition, source, r, d):
        o[cell] += _sum_keys(q[cell], _mixed(mark[cell], came))
    return tuple(x.astype(dtype, copy=False) for x in (o, r, d))


@np.errstate(all="ignore")
def grid_scan_pullback(
    q: Array, k: Array, v: Array, transition: Array, source: Array, mark: Array, direct: Any, r0: Array, d0: Array,
    do: Array, dr: Array, dd: Array, *, workers: Any,
) -> tuple[Any, ...]:  # fmt: skip
    xp, dtype, compute = namespace(q), q.dtype, accum_dtype(q.dtype)
    q, k, v, transition, source, mark, do = (
        x.astype(compute, copy=False) for x in (q, k, v, transition, source, mark, do)
    )
    dq, dk, dv, ddirect = own_cells_pullback(q, k, v, direct, do)
    dtransition, dsource, dmark = (xp.zeros(x.shape, compute) for x in (transition, source, mark))
    cells = list(_run(k, v, transition, source, r0.astype(compute), d0.astype(compute)))
    gr, gd = dr.astype(compute), dd.astype(compute)
    for (row, column, cell), came in reversed(cells):
        grid = cell[:-1]
        out = gr[row].copy(), gd[column].copy()
        seen = xp.conj(q[cell])[..., :, None] * do[cell][..., None, :]
        pair = xp.conj(k[cell][..., :, None] * v[cell][..., None, :])
        for a in (0, 1):
            dsource[(*grid, a)] = (out[a] * pair).sum((-2, -1))
            dmark[(*grid, a)] = (xp.conj(came[a]) * seen).sum((-2, -1))
            for b in (0, 1):
                dtransition[(*grid, a, b)] = (out[a] * xp.conj(came[b])).sum((-2, -1))
        dq[cell] += (xp.conj(_mixed(mark[cell], came)) * do[cell][..., None, :]).sum(-1)
        into = _mixed(xp.conj(source[cell]), out)
        dk[cell] += (into * xp.conj(v[cell])[..., None, :]).sum(-1)
        dv[cell] += _sum_keys(xp.conj(k[cell]), into)
        back, marks = xp.conj(transition[(*cell, _ALL)]), xp.conj(mark[cell])
        gr[row] = _mixed(back[..., 0], out) + marks[..., 0, None, None] * seen
        gd[column] = _mixed(back[..., 1], out) + marks[..., 1, None, None] * seen
    grads = (dq, dk, dv, dtransition, dsource, dmark, ddirect, gr, gd)
    return tuple(None if x is None else x.astype(dtype, copy=False) for x in grads)


def own_cells(q: Array, k: Array, v: Array, direct: Any) -> Array:
    """``direct (q·k) v``, what the queries read of their own cells; zeros, as a new array, without `direct`."""
    if direct is None:
        return namespace(v).zeros(v.shape, v.dtype)
    return (direct.astype(v.dtype, copy=False) * (q * k).sum(-1))[..., None] * v


def own_cells_pullback(q: Array, k: Array, v: Array, direct: Any, do: Array) -> tuple[Any, ...]:
    """The gradients of q, k, v and `direct` by `own_cells`, as new arrays."""
    xp = namespace(q)
    if direct is None:
        return (*(xp.zeros(x.shape, x.dtype) for x in (q, k, v)), None)
    direct, product, met = direct.astype(v.dtype, copy=False), (q * k).sum(-1), (do * xp.conj(v)).sum(-1)
    weight = (xp.conj(direct) * met)[..., None]
    dv = xp.conj(direct * product)[..., None] * do
    return weight * xp.conj(k), weight * xp.conj(q), dv, xp.conj(product) * met


def _run(k: Array, v: Array, transition: Array, source: Array, r: Array, d: Array) -> Iterator[tuple[Any, Any]]:
    """Each antidiagonal's indices (in `r`, in `d`, in the grid) with what comes in; moves `r` and `d` past it."""
    for row, column, cell in _diagonals(namespace(k), *k.shape[-3:-1]):
        came = r[row].copy(), d[column].copy()
        pair = k[cell][..., :, None] * v[cell][..., None, :]
        gates, enters = transition[(*cell, _ALL)], source[cell]
        r[row] = _mixed(gates[..., 0, :], came) + enters[..., 0, None, None] * pair
        d[column] = _mixed(gates[..., 1, :], came) + enters[..., 1, None, None] * pair
        yield (row, column, cell), came


def _diagonals(xp: ModuleType, width: int, height: int) -> Iterator[tuple[Any, ...]]:
    for n in range(width + height - 1 if width and height else 0):
        xs = xp.arange(max(0, n - height + 1), min(width, n + 1))
        ys = n - xs
        yield (..., ys, _ALL, _ALL), (..., xs, _ALL, _ALL), (..., xs, ys, _ALL)


def _mixed(weights: Array, states: Any) -> Array:
    """The sum of two states with weights (…, 2)."""
    return weights[..., 0, None, None] * states[0] + weights[..., 1, None, None] * states[1]


def _sum_keys(x: Array, state: Array) -> Array:
    return (x[..., :, None] * state).sum(-2)
