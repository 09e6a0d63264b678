"""Scattered cells, sorted by the window they lie in and cut into equal groups, so that recurrences can run on them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from linscan import _arrays
from linscan._arrays import Array


class Groups(NamedTuple):
    """Which cell stands where: `index` (groups, size) names the cell at each place, `place` (n,) each cell's own place.

    Places left over in the last group of a sample repeat cells; what is computed there belongs to nobody.
    """

    index: Array
    place: Array

    def split(self, x: Array) -> Array:
        """Values (n, …) of the cells as groups, (groups, size, …)."""
        return x[self.index]

    def merge(self, y: Array) -> Array:
        """Values (groups, size, …) of the groups as values of the cells, (n, …), each from its own place."""
        return y.reshape(self.index.size, *y.shape[2:])[self.place]

    def split_adjoint(self, dy: Array) -> Array:
        """The gradient of `split`'s argument: the sum over all places of a cell."""
        xp, flat = _arrays.namespace(dy), self.index.ravel()
        compute = dy.reshape(flat.size, *dy.shape[2:]).astype(_arrays.accum_dtype(dy.dtype), copy=False)
        dx, spare = compute[self.place], xp.ones(flat.size, bool)
        spare[self.place] = False
        (spare,) = xp.nonzero(spare)
        spare = spare[xp.argsort(flat[spare], kind="stable")]
        cells = flat[spare]
        turn = xp.arange(spare.size) - xp.searchsorted(cells, cells)  # a cell's first repetition, its second, …
        for n in range(int(turn.max()) + 1 if spare.size else 0):  # no cell twice in a turn, so the order is fixed
            dx[cells[turn == n]] += compute[spare[turn == n]]
        return dx.astype(dy.dtype, copy=False)

    def merge_adjoint(self, dx: Array) -> Array:
        """The gradient of `merge`'s argument: a cell's at its own place, zero at repetitions."""
        dy = _arrays.namespace(dx).zeros((self.index.size, *dx.shape[1:]), dx.dtype)
        dy[self.place] = dx
        return dy.reshape(*self.index.shape, *dx.shape[1:])


def window_groups(
    cells: Array,
    window: Sequence[int],
    size: int,
    *,
    order: Sequence[int] | None = None,
    sample: Array | None = None,
) -> Groups:
    """Sort scattered cells (voxels) by the window they lie in and cut the line into groups of equal size.

    Parameters
    ----------
    cells : array_like of int
        Coordinates (n, dims), not negative.
    window : sequence of int
        Edge lengths of a window, one for each coordinate.
    size : int
        Cells of a group.
    order : sequence of int, optional
        Coordinates from the one that changes slowest to the one that changes fastest, among windows and inside one;
        ``(0, 1, 2)``, x-major, by default; ``(1, 0, 2)`` is y-major.
    sample : array_like of int, optional
        To which sample of a batch each cell belongs, (n,), not negative. No group mixes samples.

    Returns
    -------
    Groups
        ``index`` (groups, size) and ``place`` (n,), with ``split(x)`` from values (n, …) to (groups, size, …) and
        ``merge(y)`` back, and the gradients of both, ``split_adjoint`` and ``merge_adjoint``. The last group of a
        sample is filled up with the cells at the same places of the group before it, or, if it is the only one, with
        its own from the first one on. A sample without cells has no group; no cells at all, no groups.

    Raises
    ------
    ValueError
        If shapes do not fit, an edge or `size` is below 1, `order` is no order of the coordinates, or a number is
        negative.
    TypeError
        If coordinates or samples are not integers, or host and GPU arrays are mixed.

    Notes
    -----
    One stable sort, O(n log n). The number of groups depends on the cells: a GPU is waited for.

    References
    ----------
    .. [1] Z. Liu et al., "LION: linear group RNN for 3D object detection in point clouds", 2024, arXiv:2407.18232.

    Examples
    --------
    Five cells of a line, windows of two, groups of three; the last place repeats the last of the group before it:

    >>> import numpy as np
    >>> from linscan import window_groups
    >>> groups = window_groups(np.array([[5], [0], [3], [1], [2]]), (2,), 3)
    >>> groups.split(np.array([50, 0, 30, 10, 20]))
    array([[ 0, 10, 20],
           [30, 50, 20]])
    >>> groups.merge(groups.split(np.array([50, 0, 30, 10, 20])))
    array([50,  0, 30, 10, 20])
    """
    who = "window_groups"
    xp, cells, sample = _arrays.take(who, cells=cells, sample=sample)
    cells = _whole_numbers(who, "cells", cells)
    if cells.ndim != 2 or cells.shape[1] != len(window):
        raise ValueError(f"{who}: cells must have shape (n, {len(window)}), as window has edges; got {cells.shape}")
    n, dims = cells.shape
    size = _arrays.check_count(who, "size", size, 1)
    edges = [_arrays.check_count(who, "window", edge, 1) for edge in window]
    order = tuple(range(dims)) if order is None else tuple(order)
    if sorted(order) != list(range(dims)):
        raise ValueError(f"{who}: order must name each of the {dims} coordinates once; got {order}")
    sample = xp.zeros(n, np.int64) if sample is None else _whole_numbers(who, "sample", sample)
    if sample.shape != (n,):
        raise ValueError(f"{who}: sample must have shape ({n},); got {sample.shape}")
    slowest_last = [cells[:, i] for i in reversed(order)] + [cells[:, i] // edges[i] for i in reversed(order)]
    line = xp.lexsort(xp.stack([*slowest_last, sample]))
    counts = xp.bincount(sample, minlength=1)
    places = -(-counts // size) * size
    start, begin = xp.cumsum(counts) - counts, xp.cumsum(places) - places
    mine = sample[line]
    place = xp.empty(n, np.int64)
    place[line] = begin[mine] + xp.arange(n) - start[mine]
    at = xp.arange(int(places.sum()))
    owner = xp.searchsorted(xp.cumsum(places), at, side="right")
    rank, count = at - begin[owner], counts[owner]
    rank = xp.where(rank < count, rank, xp.where(count > size, rank - size, rank % xp.maximum(count, 1)))
    return Groups(line[start[owner] + rank].reshape(-1, size), place)


def _whole_numbers(who: str, name: str, x: Array) -> Array:
    x = _arrays.namespace(x).asarray(x)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{who}: {name} must be integers; got {x.dtype}")
    if _arrays.host_any(x, lambda x: x < 0):
        raise ValueError(f"{who}: {name} must not be negative")
    return x.astype(np.int64, copy=False)
