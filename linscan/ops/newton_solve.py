"""Newton's method for all steps of a nonlinear recurrence at once: what an iteration of `newton_scan` does.

The unknowns are all states. With f the cell's step and the residual ``r[t] = f(s[t-1]) - s[t]``, the correction solves
``δ[t] = J[t] δ[t-1] + r[t]``, J being the Jacobian of f: one linear recurrence, diagonal, of S × S blocks per channel,
or dense over a head. Any other J has the same solution, reached more slowly.
"""

from typing import NamedTuple

from linscan._arrays import Array, accum_dtype, namespace
from linscan.ops.block_scan import block_scan
from linscan.ops.rnn_shapes import Recurrence, before
from linscan.ops.scan import scan


class NewtonInfo(NamedTuple):
    """What `linscan.newton_scan` did, one entry per row (the leading axes).

    Attributes
    ----------
    converged : array of bool
        Whether the residual came below the tolerance; where it did not, the row was run by the loop.
    iterations : array of int
        Corrections made.
    residual : array
        The largest ``|f(s[t-1]) - s[t]| / (1 + |s[t]|)`` of what the iterations left.
    """

    converged: Array
    iterations: Array
    residual: Array


def iterate(
    r: Recurrence, *, quasi: bool, damping: float | None, tol: float, limit: int, workers: int | None
) -> tuple[Array, Array, Array, Array]:
    """States after each step, (…, T, S, d), forwards in time, and the three arrays of `NewtonInfo`."""
    xp, compute = namespace(r.x), accum_dtype(r.x.dtype)
    x = r.x.astype(compute, copy=False)
    shape = (*x.shape[:-2], r.cell.states, x.shape[-1])
    s, _ = _step(r, x, before(xp.broadcast_to(r.start, shape), r, False))
    count, size = xp.zeros(shape[:-3], int), xp.zeros(shape[:-3], compute)
    if not s.size:
        return s, size <= tol, count, size
    for i in range(limit + 1):
        prev = before(s, r, False)
        new, y = _step(r, x, prev)
        residual = new - s
        size = (xp.abs(residual) / (1 + xp.abs(s))).max(axis=(-3, -2, -1))
        active = (size > tol) & xp.isfinite(size)
        if i == limit or not bool(active.any()):
            break
        a = jacobian(r, x, y, prev, quasi)
        if damping is not None:
            a = _damped(a, damping, quasi or r.cell.diagonal)
        s = xp.where(active[..., None, None, None], s + solve(r, a, residual, quasi, workers=workers), s)
        count = count + active
    return s, size <= tol, count, size


def _step(r: Recurrence, x: Array, prev: Array) -> tuple[Array, Array]:
    """All steps from the states before them, and y."""
    y = products(r, prev)
    return r.cell.step(x, y, prev, weights(r)), y


def weights(r: Recurrence) -> Array | None:
    """W with an axis for time."""
    return None if r.w is None else r.w[..., None, :, :]


def products(r: Recurrence, prev: Array) -> Array:
    """``y = R u(s) + b`` at all times, as one matrix product per row."""
    u = r.cell.feed(prev)
    if r.cell.diagonal:
        y = r.R[..., None, :, :] * u[..., None, :]
    else:
        G, d = r.R.shape[-3:-1]
        flat = r.R.reshape(*r.R.shape[:-3], G * d, d)
        y = namespace(u).matmul(u, flat.swapaxes(-1, -2)).reshape(*u.shape[:-1], G, d)
    return y if r.b is None else y + r.b[..., None, :, :]


def jacobian(r: Recurrence, x: Array, y: Array, prev: Array, quasi: bool) -> Array:
    """Derivatives of each step's state by the one before.

    Of shape (…, T, S, S, d), ``[a, b, i]`` that of row a by row b of channel i, if `quasi` (couplings between channels
    left out) or the matrices are diagonal; else (…, T, S, d, S, d).
    """
    xp, states = namespace(x), r.cell.states
    own, through = [], []
    for a in range(states):
        unit = xp.zeros_like(prev)
        unit[..., a, :] = 1
        _, dy, ds, _ = r.cell.step_vjp(x, y, prev, weights(r), unit)
        own.append(ds)
        through.append(dy)
    by_state, by_y = xp.stack(own, axis=-3), xp.stack(through, axis=-3)
    fed = r.cell.feed_vjp(prev, xp.ones_like(prev[..., 0, :]))[..., None, :, :]
    if quasi or r.cell.diagonal:
        diagonal = r.R if r.cell.diagonal else xp.einsum("...gii->...gi", r.R)
        return by_state + (by_y * diagonal[..., None, None, :, :]).sum(axis=-2, keepdims=True) * fed
    by_u = xp.einsum("...tagi,...gij->...taij", by_y, r.R)
    full = by_u[..., None, :] * fed[..., None, :, :]
    i = xp.arange(x.shape[-1])
    full[..., i, :, i] += xp.moveaxis(by_state, -1, 0)
    return full


def solve(r: Recurrence, a: Array, b: Array, quasi: bool, *, back: bool = False, workers: int | None = None) -> Array:
    """``δ[t] = a[t] δ[t-1] + b[t]`` over (…, T, S, d); with `back` ``δ[t] = a[t+1]ᵀ δ[t+1] + b[t]``."""
    xp, states, by_channel = namespace(b), r.cell.states, quasi or r.cell.diagonal
    reset, n = r.reset, states * b.shape[-1]
    a = xp.moveaxis(a, -1, -4) if by_channel else a.reshape(*b.shape[:-2], n, n)  # (…, d, T, S, S) or (…, T, n, n)
    b = xp.moveaxis(b, -1, -3) if by_channel else b.reshape(*b.shape[:-2], n)
    if back:  # the map into a step belongs, transposed, to the step before
        a = xp.roll(a.swapaxes(-1, -2), -1, axis=-3)
        a[..., -1:, :, :] = 0
        reset = None if reset is None else xp.roll(reset, -1, axis=-1)
    if by_channel:
        stops = None if reset is None else reset[..., None, :]
        if states == 1:
            found = scan(a[..., 0, 0], b[..., 0], reverse=back, reset=stops, workers=workers)[..., None]
        else:
            found = block_scan(a, b, reverse=back, reset=stops, workers=workers)
        return xp.moveaxis(found, -3, -1)
    return block_scan(a, b, reverse=back, reset=reset, workers=workers).reshape(*b.shape[:-1], states, n // states)


def pulled(r: Recurrence, states: Array, dh: Array, dstate: Array, workers: int | None) -> tuple[Array, ...]:
    """Gradients of x, y, w and the first state, forwards in time."""
    xp, x = namespace(states), r.x.astype(states.dtype, copy=False)
    prev, ds = before(states, r, False), xp.zeros_like(states)
    y = products(r, prev)
    ds[..., 0, :] = dh
    if not states.shape[-3]:
        return xp.zeros_like(x), xp.zeros_like(x), None if r.w is None else xp.zeros_like(r.w), dstate
    ds[..., -1, :, :] += dstate
    total = solve(r, jacobian(r, x, y, prev, False), ds, False, back=True, workers=workers)
    dx, dy, ds, dw = r.cell.step_vjp(x, y, prev, weights(r), total)
    first = ds[..., 0, :, :] + r.cell.product_vjp(r.R, prev[..., 0, :, :], dy[..., 0, :, :])
    if r.reset is not None:
        first = xp.where(r.reset[..., 0, None, None], 0, first)
    return dx, dy, None if dw is None else dw.sum(axis=-3), first


def _damped(a: Array, damping: float, by_channel: bool) -> Array:
    """`a` scaled down, a step and channel (or head) at a time, to row sums of at most `damping`."""
    sums = abs(a).sum(axis=-2, keepdims=True) if by_channel else abs(a).sum(axis=(-2, -1), keepdims=True)
    largest = sums.max(axis=-3 if by_channel else (-4, -3), keepdims=True)
    return a * (damping / namespace(a).maximum(largest, damping))
