"""Products with block-diagonal matrices: every head has a matrix of its own."""

from collections.abc import Callable

from linscan._arrays import Array, sum_rows


def block_diagonal_vjp(
    x: Array, w: Array, b: Array | None = None
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array | None]]]:
    """Product with a block-diagonal matrix of blocks `w`, (H, K, J), on channels (…, H K), and its pullback."""
    H, K, J = w.shape
    rows = x.reshape(-1, H, K).swapaxes(0, 1)  # (H, rows, K)
    y = (rows @ w).swapaxes(0, 1).reshape(*x.shape[:-1], H * J)

    def pullback(dy: Array) -> tuple[Array, Array, Array | None]:
        g = dy.reshape(-1, H, J).swapaxes(0, 1)
        dx = (g @ w.swapaxes(1, 2)).swapaxes(0, 1).reshape(x.shape)
        return dx, rows.swapaxes(1, 2) @ g, None if b is None else sum_rows(dy)

    return y if b is None else y + b, pullback
