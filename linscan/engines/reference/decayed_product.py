"""Products of queries and keys that decay with the time between them, and their pullback, by halves of halves.

``A[t, s] = sum over K of q[t] k[s] e^(g[s+1] + … + g[t])`` for s <= t. Where t and s lie on different sides of the
middle, the exponent is a sum up to the middle plus one from the middle on: a product of two scaled matrices. Both
halves are then the same problem. No exponent is ever a difference of long sums, so that strong decays keep their
digits and ``g = -inf`` is exact. Decays are (…, T, 1) or (…, T, K).
"""

from linscan._arrays import Array, namespace


def edges(g: Array) -> tuple[Array, Array]:
    """``e^(g[0] + … + g[t])`` and ``e^(g[t+1] + … + g[T-1])``: the decay since the beginning, and until the end."""
    xp = namespace(g)
    return xp.exp(xp.cumsum(g, axis=-2)), xp.exp(after_here(g))


def after_here(g: Array) -> Array:
    """Sums over later entries, without their own."""
    xp = namespace(g)
    return xp.concatenate([from_here(g)[..., 1:, :], xp.zeros_like(g[..., :1, :])], axis=-2)


def from_here(x: Array) -> Array:
    """Sums over an entry and all later ones."""
    return namespace(x).cumsum(x[..., ::-1, :], axis=-2)[..., ::-1, :]


def until_here(x: Array) -> Array:
    """Sums over earlier entries, without their own."""
    xp = namespace(x)
    return xp.concatenate([xp.zeros_like(x[..., :1, :]), xp.cumsum(x, axis=-2)[..., :-1, :]], axis=-2)


def product(q: Array, k: Array, g: Array) -> Array:
    """The lower triangle A, (…, T, T)."""
    xp, n = namespace(q), q.shape[-2]
    if n <= 1:
        return (q * k).sum(axis=-1, keepdims=True)
    A, h = xp.zeros((*q.shape[:-1], n), q.dtype), n // 2
    A[..., :h, :h] = product(q[..., :h, :], k[..., :h, :], g[..., :h, :])
    A[..., h:, h:] = product(q[..., h:, :], k[..., h:, :], g[..., h:, :])
    since, until = edges(g[..., h:, :])[0], edges(g[..., :h, :])[1]
    A[..., h:, :h] = (q[..., h:, :] * since) @ xp.swapaxes(k[..., :h, :] * until, -1, -2)
    return A


def product_pullback(q: Array, k: Array, g: Array, dA: Array) -> tuple[Array, Array, Array]:
    """Gradients of q, k and g; q and k are conjugated already.

    The exponents of a block are local sums, so g's gradient is two running sums per block, of terms that all decay:
    nothing cancels that is larger than the result.
    """
    xp, n = namespace(q), q.shape[-2]
    if n <= 1:
        return dA * k, dA * q, xp.zeros_like(g)
    h = n // 2
    low, high = (
        product_pullback(q[..., p, :], k[..., p, :], g[..., p, :], dA[..., p, p]) for p in (slice(h), slice(h, n))
    )
    dq, dk, dg = (xp.concatenate(pair, axis=-2) for pair in zip(low, high, strict=True))
    since, until = edges(g[..., h:, :])[0], edges(g[..., :h, :])[1]
    right, left, block = q[..., h:, :], k[..., :h, :], dA[..., h:, :h]
    dright, dleft = since * (block @ (left * until)), until * (xp.swapaxes(block, -1, -2) @ (right * since))
    dq[..., h:, :] += dright
    dk[..., :h, :] += dleft
    read, written = (xp.real(x * dx) for x, dx in ((right, dright), (left, dleft)))
    if g.shape[-1] == 1:
        read, written = (x.sum(axis=-1, keepdims=True) for x in (read, written))
    dg[..., h:, :] += from_here(read)
    dg[..., :h, :] += until_here(written)
    return dq, dk, dg
