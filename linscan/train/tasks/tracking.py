"""Keeping track of a state: the product of all that came so far, in a group.

The label at every step is the state after it. Training uses sequences of 3 to `longest` steps; tests use longer ones,
of which only the steps beyond `longest` count: what is measured is whether the rule was learnt, or its short cases.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from linscan.train.data import Batch
from linscan.train.tasks.drawn import Drawn


@dataclass(frozen=True)
class Parity(Drawn):
    """Whether the number of ones so far is odd.

    Parameters
    ----------
    size, evaluations
        As in `Drawn`.
    longest : int, default 40
        Steps of the longest sequences in training.
    tested : int, default 256
        Of those in tests.

    Examples
    --------
    >>> from linscan.train.tasks import Parity
    >>> batch = Parity(size=2).batch(0, seed=0)
    >>> (batch["labels"] == batch["u"].cumsum(-1) % 2).all()
    np.True_
    """

    longest: int = 40
    tested: int = 256

    @property
    def inputs(self) -> int:
        """Elements of the group."""
        return len(self.table())

    @property
    def outputs(self) -> int:
        """Elements of the group."""
        return len(self.table())

    def table(self) -> np.ndarray:
        """``table[state, token]`` is the state after the token; 0 is the first state."""
        return np.array([[0, 1], [1, 0]])

    def draw(self, rng: np.random.Generator, test: bool) -> Batch:
        """See `Drawn`."""
        T = self.tested if test else self.longest
        u = rng.integers(0, self.inputs, (self.size, T))
        table, labels = self.table(), np.empty_like(u)
        state = np.zeros(self.size, int)
        for t in range(T):
            state = labels[:, t] = table[state, u[:, t]]
        times = np.arange(T)
        mask = times >= self.longest if test else times < rng.integers(3, T + 1, (self.size, 1))
        return {"u": u, "labels": labels, "mask": np.broadcast_to(mask, u.shape)}


@dataclass(frozen=True)
class Modular(Parity):
    """The sum of all numbers so far modulo `modulus`; further parameters as in `Parity`.

    Examples
    --------
    >>> from linscan.train.tasks import Modular
    >>> batch = Modular(size=2, modulus=3).batch(0, seed=0)
    >>> (batch["labels"] == batch["u"].cumsum(-1) % 3).all()
    np.True_
    """

    modulus: int = 5

    def table(self) -> np.ndarray:
        """See `Parity`."""
        n = np.arange(self.modulus)
        return (n[:, None] + n) % self.modulus


@dataclass(frozen=True)
class Permutations(Parity):
    """The product of all permutations of `things` things so far: the word problem of a symmetric group.

    Further parameters are those of `Parity`. With 5 things, which no product of commuting steps can follow, the tokens
    are 120.

    Examples
    --------
    >>> from linscan.train.tasks import Permutations
    >>> Permutations(things=3).inputs
    6
    """

    longest: int = 32
    tested: int = 128
    things: int = 3

    def table(self) -> np.ndarray:
        """See `Parity`; a token acts after the state."""
        return _products(self.things)


@cache
def _products(things: int) -> np.ndarray:
    group = np.array(list(permutations(range(things))))
    number = {tuple(p): i for i, p in enumerate(group.tolist())}
    return np.array([[number[tuple(after[before].tolist())] for after in group] for before in group])
