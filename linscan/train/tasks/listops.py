"""ListOps with the rules of Long Range Arena: nested operations on digits, of which the result is asked.

Drawn here from a seed: the distribution is that of the published generator, the sequences are not those of its released
files. Say so beside any accuracy, and beside the two baselines that need no nesting: 17 % for the most frequent class,
36.5 % for the best guess from the first operator alone.

Y. Tay et al., "Long Range Arena: a benchmark for efficient transformers", 2020, arXiv:2011.04006.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from linscan.train.data import Batch, InMemory

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = ("<pad>", "<eos>", *OPERATORS, "]", *map(str, range(10)))
_CLOSE, _DIGIT = TOKENS.index("]"), TOKENS.index("0")
_DEPTH, _OPERATOR, _MOST = 10, 0.25, 10  # deepest level; chance of an operator above it; its arguments, from 2 on


def tree(uniform: Callable[[], float], depth: int = 1) -> tuple[list[int], int]:
    """The tokens of a random expression and its value; `uniform` draws numbers from [0, 1)."""
    if depth == _DEPTH or uniform() > _OPERATOR:
        digit = int(10 * uniform())
        return [_DIGIT + digit], digit
    tokens, values = [0], []
    for _ in range(2 + int((_MOST - 1) * uniform())):
        part, value = tree(uniform, depth + 1)
        tokens += part
        values.append(value)
    kind = int(len(OPERATORS) * uniform())
    tokens[0] = TOKENS.index(OPERATORS[kind])
    tokens.append(_CLOSE)
    return tokens, result(kind, values)


def result(kind: int, values: list[int]) -> int:
    """Minimum, maximum, median (rounded down), or sum modulo ten."""
    if kind == 2:
        ordered, n = sorted(values), len(values)
        return (ordered[(n - 1) // 2] + ordered[n // 2]) // 2
    return (min(values), max(values), 0, sum(values) % 10)[kind]


@dataclass(frozen=True)
class ListOps:
    """Expressions of more than `least` and fewer than `most` tokens, none of them twice.

    Parameters
    ----------
    size : int, default 50
        Expressions in a batch.
    counts : tuple of int, default (96000, 2000, 2000)
        For training, validation (what `tests` gives) and the final test.
    least, most : int
        Limits of the length, exclusive; an end mark is added.
    seed : int, default 0
        Of the expressions.
    folder : str, optional
        Where the expressions are kept once drawn, as .npz: drawing all of them takes minutes.

    Examples
    --------
    >>> from linscan.train.tasks import ListOps
    >>> task = ListOps(size=2, counts=(4, 2, 2), least=5, most=30)
    >>> batch = task.batch(0, seed=0)
    >>> batch["u"].shape[1] == batch["lengths"].max() <= 30
    np.True_
    """

    size: int = 50
    counts: tuple[int, int, int] = (96_000, 2_000, 2_000)
    least: int = 500
    most: int = 2000
    seed: int = 0
    folder: str | None = None

    tokens = True
    pool = "mean"
    inputs = len(TOKENS)
    outputs = 10

    def batch(self, n: int, seed: int) -> Batch:
        """Batch n of training."""
        return self.parts[0].batch(n, seed)

    def tests(self) -> Iterator[Batch]:
        """The validation expressions."""
        return self.parts[0].tests()

    @cached_property
    def parts(self) -> tuple[InMemory, InMemory]:
        """Training with validation, and training with the final test."""
        u, lengths, labels = self._stored()
        edges = np.cumsum([0, *self.counts])
        train, valid, test = (
            {"u": u[lo:hi], "lengths": lengths[lo:hi], "labels": labels[lo:hi]} for lo, hi in pairwise(edges)
        )
        return InMemory(train, valid, self.size), InMemory(train, test, self.size)

    def _stored(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.folder is None:
            return self._drawn()
        name = f"listops-{'-'.join(map(str, self.counts))}-{self.least}-{self.most}-{self.seed}.npz"
        path = Path(self.folder) / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{name}")
            u, lengths, labels = self._drawn()
            np.savez_compressed(part, u=u, lengths=lengths, labels=labels)
            part.replace(path)
        with np.load(path) as file:
            return file["u"], file["lengths"], file["labels"]

    def _drawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        uniform, count = random.Random(self.seed).random, sum(self.counts)  # faster, number by number, than NumPy's
        kept: dict[bytes, int] = {}
        while len(kept) < count:
            tokens, value = tree(uniform)
            if self.least < len(tokens) < self.most:
                kept.setdefault(bytes(tokens), value)
        u = np.zeros((count, self.most), np.uint8)
        lengths = np.array([len(text) + 1 for text in kept])
        for row, text in zip(u, kept, strict=True):
            row[: len(text)] = np.frombuffer(text, np.uint8)
            row[len(text)] = TOKENS.index("<eos>")
        return u, lengths, np.fromiter(kept.values(), np.int64, count)
