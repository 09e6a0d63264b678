"""ListOps with the rules of Long Range Arena: nested operations on digits, of which the result is asked.

Drawn here from a seed: the distribution is that of the published generator, the sequences are not those of its released
files. Say so beside any accuracy, and beside the two baselines that need no nesting: 17 % for the most frequent class,
36.5 % for the best guess from the first operator alone.

Y. Tay et al., "Long Range Arena: a benchmark for efficient transformers", 2020, arXiv:2011.04006.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from linscan.train.data import Batch, InMemory

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = ("<pad>", "<eos>", *OPERATORS, "]", *map(str, range(10)))
_AT_ONCE = 1 << 20  # random numbers


@dataclass(frozen=True)
class ListOps:
    """Expressions of more than `least` and fewer than `most` tokens, none of them twice.

    Parameters
    ----------
    size : int, default 50
        Expressions in a batch.
    counts : tuple of int, default (96000, 2000, 2000)
        For training, validation (what `tests` gives) and the final test (`finals`).
    least, most : int
        Limits of the length, exclusive; an end mark is added.
    seed : int, default 0
        Of the expressions. Drawing those of the default takes seconds.
    bucket : int, optional, default 128
        Batches are of like lengths, see `InMemory`.
    reorder : bool, default False
        Train on every expression with the arguments of its operations in a new random order each time: no operator
        minds. That is more than the published recipes do.

    Examples
    --------
    >>> from linscan.train.tasks import ListOps
    >>> task = ListOps(size=2, counts=(4, 2, 2), least=5, most=30, bucket=None)
    >>> batch = task.batch(0, seed=0)
    >>> batch["u"].shape[1] == batch["lengths"].max() <= 30
    np.True_
    """

    size: int = 50
    counts: tuple[int, int, int] = (96_000, 2_000, 2_000)
    least: int = 500
    most: int = 2000
    seed: int = 0
    bucket: int | None = 128
    reorder: bool = False

    tokens = True
    pool = "mean"
    inputs = len(TOKENS)
    outputs = 10

    def batch(self, n: int, seed: int) -> Batch:
        """Batch n of training."""
        batch = self.parts[0].batch(n, seed)
        if self.reorder:
            from linscan.train.tasks.expressions import reorder  # with Numba

            rng = np.random.default_rng([seed, 4, n])
            reorder(batch["u"], batch["lengths"] - 1, rng.random(batch["u"].shape, np.float32))
        return batch

    def tests(self) -> Iterator[Batch]:
        """The validation expressions."""
        return self.parts[0].tests()

    def finals(self) -> Iterator[Batch]:
        """The expressions of the final test."""
        return self.parts[1].tests()

    @cached_property
    def parts(self) -> tuple[InMemory, InMemory]:
        """Training with validation, and training with the final test."""
        u, lengths, labels = self._drawn()
        edges = np.cumsum([0, *self.counts])
        train, valid, test = (
            {"u": u[lo:hi], "lengths": lengths[lo:hi], "labels": labels[lo:hi]} for lo, hi in pairwise(edges)
        )
        return InMemory(train, valid, self.size, self.bucket), InMemory(train, test, self.size, self.bucket)

    def _drawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from linscan.train.tasks.expressions import expressions  # with Numba

        rng, count, left = np.random.default_rng(self.seed), sum(self.counts), np.empty(0)
        kept: dict[bytes, int] = {}
        while len(kept) < count:
            uniform = np.concatenate([left, rng.random(_AT_ONCE)])
            tokens = np.empty(uniform.size, np.uint8)
            ends, values = np.empty((2, uniform.size), np.int64)
            found, used = expressions(uniform, self.least, self.most, tokens, ends, values)
            texts = pairwise([0, *ends[:found].tolist()])
            for (lo, hi), value in zip(texts, values[:found].tolist(), strict=True):
                if len(kept) < count:
                    kept.setdefault(tokens[lo:hi].tobytes(), value)
            left = uniform[used:]
        u = np.zeros((count, self.most), np.uint8)
        lengths = np.array([len(text) + 1 for text in kept])
        for row, text in zip(u, kept, strict=True):
            row[: len(text)] = np.frombuffer(text, np.uint8)
            row[len(text)] = TOKENS.index("<eos>")
        return u, lengths, np.fromiter(kept.values(), np.int64, count)
