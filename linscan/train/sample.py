"""Sequences drawn from a model one step at a time."""

from typing import Any

import numpy as np

from linscan import _arrays, _trees


def sample(
    model: Any, params: Any, prompt: np.ndarray, count: int, rng: np.random.Generator, *, temperature: float = 1.0
) -> np.ndarray:
    """Tokens that a model of tokens goes on with, by its `step`: constant memory, however long.

    Parameters
    ----------
    model : Stack
        With ``tokens=True`` and an output for every token at every step.
    params : dict
        On the host or the GPU; the steps run there.
    prompt : array of int, shape (T,)
        What comes first, at least one token.
    count : int
        Tokens to draw.
    rng : numpy.random.Generator
    temperature : float, default 1
        What scores are divided by: below 1 likely tokens become likelier, and 0 takes the likeliest.

    Returns
    -------
    tokens : array of int, shape (count,)

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import LRU, Block, Stack
    >>> from linscan.train.sample import sample
    >>> model = Stack((Block(LRU(8, 4)),), inputs=5, outputs=5, tokens=True)
    >>> rng = np.random.default_rng(0)
    >>> sample(model, model.init(rng), np.array([0, 1]), 3, rng).shape
    (3,)
    """
    xp = _arrays.namespace(next(iter(_trees.leaves(params).values())))
    scores, state = None, 0
    for token in prompt:
        scores, state = model.step(params, xp.asarray([int(token)]), state)
    drawn = np.empty(count, np.int64)
    for n in range(count):
        z = _arrays.to_host(scores)[0].astype(np.float64)
        if temperature:
            z = z / temperature + rng.gumbel(size=z.shape)  # the largest is a draw from the softmax
        drawn[n] = z.argmax()
        if n + 1 < count:
            scores, state = model.step(params, xp.asarray(drawn[n : n + 1]), state)
    return drawn
