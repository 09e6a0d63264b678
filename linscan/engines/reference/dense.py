"""Products of matrices over rows of channels, and the gradient of their weights."""

from linscan._arrays import Array, product, sum_rows


def dense(x: Array, w: Array, b: Array | None) -> Array:
    """``x w + b`` for x (n, inner), w (inner, width) and b (width,), all of one dtype."""
    y = product(x, w)
    if b is not None:
        y += b
    return y


def dense_pullback(x: Array, dy: Array, bias: bool) -> tuple[Array, Array | None]:
    """The gradients ``xᵀ dy`` of the weights and, if there is a `bias`, ``Σ dy`` of that."""
    return product(x.T, dy), sum_rows(dy) if bias else None
