"""Holding on to what was seen: one bit over a thousand steps, whole sequences, pairs of keys and values."""

from dataclasses import dataclass

import numpy as np

from linscan.train.data import Batch
from linscan.train.tasks.drawn import Drawn


@dataclass(frozen=True)
class Memory(Drawn):
    """The sign of the first input, e₁ or -e₁, after `length` steps of random one-hot vectors that are not e₁.

    E. Martin and C. Cundy, arXiv:1709.04057, after Hochreiter and Schmidhuber's problem 2b.

    Parameters
    ----------
    size, evaluations
        As in `Drawn`.
    length : int, default 1024
        Steps, the first included.
    features : int, default 128
        Of the inputs.

    Examples
    --------
    >>> from linscan.train.tasks import Memory
    >>> batch = Memory(size=2, length=5, features=3).batch(0, seed=0)
    >>> batch["u"].shape, (batch["u"][:, 0, 0] == 1 - 2 * batch["labels"]).all()
    ((2, 5, 3), np.True_)
    """

    size: int = 8
    length: int = 1024
    features: int = 128
    tokens = False
    pool = "last"

    @property
    def inputs(self) -> int:
        """Features."""
        return self.features

    @property
    def outputs(self) -> int:
        """Two signs."""
        return 2

    def draw(self, rng: np.random.Generator, test: bool) -> Batch:
        """See `Drawn`."""
        hot = rng.integers(1, self.features, (self.size, self.length))
        labels = rng.integers(0, 2, self.size)
        hot[:, 0] = 0
        u = (hot[..., None] == np.arange(self.features)).astype(np.float32)
        u[:, 0, 0] = 1 - 2 * labels
        return {"u": u, "labels": labels}


@dataclass(frozen=True)
class Copy(Drawn):
    """Repeat `count` symbols after `delay` blanks.

    Parameters
    ----------
    size, evaluations
        As in `Drawn`.
    symbols : int, default 8
        Different ones; two tokens more are the blank and the sign to repeat.
    count : int, default 10
        To repeat.
    delay : int, default 20
        Steps between the last one and the sign.

    Examples
    --------
    >>> from linscan.train.tasks import Copy
    >>> batch = Copy(size=1, symbols=4, count=3, delay=2).batch(0, seed=0)
    >>> batch["u"], batch["labels"][batch["mask"]]
    (array([[2, 3, 3, 4, 4, 5, 5, 5]]), array([2, 3, 3]))
    """

    symbols: int = 8
    count: int = 10
    delay: int = 20

    @property
    def inputs(self) -> int:
        """Symbols, blank, sign."""
        return self.symbols + 2

    @property
    def outputs(self) -> int:
        """Symbols."""
        return self.symbols

    def draw(self, rng: np.random.Generator, test: bool) -> Batch:
        """See `Drawn`."""
        shown = rng.integers(0, self.symbols, (self.size, self.count))
        return self._asked(self._shown(rng, shown), shown)

    def _shown(self, rng: np.random.Generator, shown: np.ndarray) -> np.ndarray:
        return np.concatenate([shown, np.full((self.size, self.delay), self.symbols)], 1)

    def _asked(self, before: np.ndarray, shown: np.ndarray) -> Batch:
        u = np.concatenate([before, np.full_like(shown, self.symbols + 1)], 1)
        labels = np.concatenate([np.zeros_like(before), shown], 1)
        return {"u": u, "labels": labels, "mask": np.arange(u.shape[1]) >= before.shape[1] + np.zeros_like(u)}


@dataclass(frozen=True)
class SelectiveCopy(Copy):
    """Repeat `count` symbols that stand at random places among blanks, `count` + `delay` steps in all.

    Parameters are those of `Copy`. The places differ from row to row: a filter cannot find them.

    Examples
    --------
    >>> from linscan.train.tasks import SelectiveCopy
    >>> batch = SelectiveCopy(size=1, symbols=4, count=2, delay=4).batch(0, seed=1)
    >>> batch["u"].shape, (batch["u"] == 4).sum()
    ((1, 8), np.int64(4))
    """

    def _shown(self, rng: np.random.Generator, shown: np.ndarray) -> np.ndarray:
        steps = self.count + self.delay
        places = np.sort(rng.random((self.size, steps)).argsort(1)[:, : self.count], 1)
        before = np.full((self.size, steps), self.symbols)
        np.put_along_axis(before, places, shown, 1)
        return before


@dataclass(frozen=True)
class Recall(Drawn):
    """Pairs of a key and its value, then keys again, of which the values are asked.

    Parameters
    ----------
    size, evaluations
        As in `Drawn`.
    keys, values : int, default 32
        Different ones.
    pairs : int, default 8
        Shown, and then asked in another order.

    Examples
    --------
    >>> from linscan.train.tasks import Recall
    >>> batch = Recall(size=1, keys=4, values=4, pairs=2).batch(0, seed=0)
    >>> batch["u"].shape, batch["mask"].sum()
    ((1, 6), np.int64(2))
    """

    keys: int = 32
    values: int = 32
    pairs: int = 8

    @property
    def inputs(self) -> int:
        """Keys and values."""
        return self.keys + self.values

    @property
    def outputs(self) -> int:
        """Values."""
        return self.values

    def draw(self, rng: np.random.Generator, test: bool) -> Batch:
        """See `Drawn`."""
        keys = rng.random((self.size, self.keys)).argsort(1)[:, : self.pairs]
        values = rng.integers(0, self.values, keys.shape)
        asked = rng.random(keys.shape).argsort(1)
        shown = np.stack([keys, self.keys + values], -1).reshape(self.size, -1)
        u = np.concatenate([shown, np.take_along_axis(keys, asked, 1)], 1)
        labels = np.concatenate([np.zeros_like(shown), np.take_along_axis(values, asked, 1)], 1)
        return {"u": u, "labels": labels, "mask": np.arange(u.shape[1]) >= shown.shape[1] + np.zeros_like(u)}
