"""N-grams of characters, interpolated: what counting alone says about a text."""

import numpy as np


def ngram_bits(train: np.ndarray, test: np.ndarray, alphabet: int, longest: int) -> list[float]:
    """Bits per character of `test` by n-grams counted in `train`, for contexts of 0, 1, …, `longest` characters.

    With C(h, c) the count of c after the context h, C(h) their sum and U(h) the number of different ones,

        p(c | h) = (C(h, c) + U(h) p(c | h without its oldest character)) / (C(h) + U(h)),

    starting from equal chances (I. Witten and T. Bell, "The zero-frequency problem", 1991, doi:10.1109/18.87000).

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.train.tasks.ngrams import ngram_bits
    >>> text = np.arange(1000) % 2
    >>> bits = ngram_bits(text, text, 2, 1)
    >>> round(bits[0], 2), bits[1] < 0.01
    (1.0, True)
    """
    if alphabet ** (longest + 1) >= 2**63:
        raise ValueError(f"ngram_bits: contexts of {longest} of {alphabet} characters do not fit into 64 bits")
    p, bits = np.full(len(test), 1 / alphabet), []
    for n in range(longest + 1):
        grams, counts = np.unique(_codes(train, n + 1, alphabet), return_counts=True)
        contexts, first, followers = np.unique(grams // alphabet, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first)
        asked = _codes(test, n + 1, alphabet)
        lower, seen = p[n:], _looked_up(contexts, followers, asked // alphabet)
        here = _looked_up(grams, counts, asked) + seen * lower
        p = np.concatenate(
            [
                p[:n],
                np.where(seen > 0, here / np.maximum(1, _looked_up(contexts, totals, asked // alphabet) + seen), lower),
            ]
        )
        bits.append(float(-np.log2(p).mean()))
    return bits


def _codes(text: np.ndarray, n: int, alphabet: int) -> np.ndarray:
    """A number for every n characters in a row; the last character counts ones."""
    codes = np.zeros(len(text) - n + 1, np.int64)
    for i in range(n):
        codes = codes * alphabet + text[i : len(text) - n + 1 + i]
    return codes


def _looked_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The values of the keys asked for, 0 where there is none; keys are in order."""
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)
