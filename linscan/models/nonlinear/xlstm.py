"""xLSTM: blocks of mLSTM and of sLSTM.

    m:  x ← x + mlstm(norm(x))
    s:  x ← x + slstm(norm(x)),  x ← x + W_down (gelu(W_gate norm(x)) W_up norm(x))

M. Beck et al., "xLSTM: extended long short-term memory", 2024, arXiv:2405.04517. A matrix memory is wide inside its own
layer; after a scalar one comes a gated feed-forward layer, 4/3 as wide as the stream.
"""

from linscan.models.attention.mlstm import MLSTM
from linscan.models.block import Block
from linscan.models.feed_forward import FeedForward
from linscan.models.nonlinear.slstm import SLSTM


def xlstm(
    channels: int, *, heads: int = 4, gate: str = "exp", pattern: str = "ms", depth: int = 1
) -> tuple[Block, ...]:
    """The blocks of one round of xLSTM.

    Parameters
    ----------
    channels : int
        D.
    heads : int, default 4
        H.
    gate : {"exp", "sigmoid"}
        Of mLSTM's input.
    pattern : str, default "ms"
        "m" for mLSTM, one block; "s" for sLSTM, two. The paper's xLSTM[7:1] is "mmmmmmms".
    depth : int, default 1
        Letters of the whole network, see `MLSTM`.

    Returns
    -------
    blocks : tuple of Block

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import Stack, xlstm
    >>> model = Stack(xlstm(channels=16), inputs=3, outputs=2)
    >>> params = model.init(np.random.default_rng(0))
    >>> len(model.blocks), model.apply(params, np.ones((2, 50, 3), np.float32))[0].shape
    (3, (2, 50, 2))
    """
    if set(pattern) - set("ms"):
        raise ValueError(f"xlstm: pattern must be made of 'm' and 's'; got {pattern!r}")
    mixing = FeedForward(channels, -(-4 * channels // 3))
    layers = {"m": (MLSTM(channels, heads, gate, depth=depth),), "s": (SLSTM(channels, heads), mixing)}
    return tuple(Block(x, activation="identity", gate="none") for c in pattern for x in layers[c])
