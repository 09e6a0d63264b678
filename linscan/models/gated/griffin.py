"""Griffin: Hawk's recurrent layers and local attention in turn, each followed by a gated feed-forward layer.

    x ← x + layer(rms(x)),  x ← x + W_down (gelu(W_gate rms(x)) W_up rms(x))

S. De et al., "Griffin: mixing gated linear recurrences with local attention for efficient language models", 2024,
arXiv:2402.19427: two recurrent layers for one of attention, feed-forward layers three times as wide as the stream.
Published code draws output products with a variance that falls with the depth; here it does not.
"""

from linscan.models.attention.local import LocalAttention
from linscan.models.block import Block
from linscan.models.feed_forward import FeedForward
from linscan.models.gated.hawk import Hawk


def griffin(channels: int, *, heads: int = 4, window: int = 128, pattern: str = "rra") -> tuple[Block, ...]:
    """The blocks of one round of Griffin.

    Parameters
    ----------
    channels : int
        D.
    heads : int, default 4
        Of the recurrence's gates and of attention.
    window : int, default 128
        Steps that attention sees.
    pattern : str, default "rra"
        "r" for a recurrent layer, "a" for attention. Only "r" makes Hawk.

    Returns
    -------
    blocks : tuple of Block
        Two for each letter.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import Stack, griffin
    >>> model = Stack(griffin(channels=16, window=8), inputs=3, outputs=2)
    >>> params = model.init(np.random.default_rng(0))
    >>> len(model.blocks), model.apply(params, np.ones((2, 50, 3), np.float32))[0].shape
    (6, (2, 50, 2))
    """
    if set(pattern) - set("ra"):
        raise ValueError(f"griffin: pattern must be made of 'r' and 'a'; got {pattern!r}")
    layers = {"r": Hawk(channels, heads=heads), "a": LocalAttention(channels, heads, window)}
    mixing = FeedForward(channels, 3 * channels, "gelu_tanh")
    return tuple(Block(x, "rms", activation="identity", gate="none") for c in pattern for x in (layers[c], mixing))
