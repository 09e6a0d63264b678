"""Random nested operations on digits, with the probabilities of Long Range Arena's generator.

Level 1 is the root. A node above level 10 is an operation of two to ten arguments with probability 1/4, and otherwise
a digit; its operator is drawn when its arguments are there. Compiled: most expressions are thrown away for their
length, and Python takes two minutes to draw as many as are asked for.
"""

import numpy as np

from linscan.engines.cpu.jit import jit
from linscan.train.tasks.listops import OPERATORS, TOKENS

_FIRST, _CLOSE, _DIGIT = (TOKENS.index(name) for name in (OPERATORS[0], "]", "0"))
_MIN, _MAX, _MED, _SM = range(4)
_OPERATOR, _MOST, _LEVELS = 0.25, 10, 10  # chance of an operation; its arguments, from 2 on; deepest level
_SPENT = 2 + _LEVELS  # random numbers that a node takes, with all operations that end after it, at the most


@jit
def expressions(
    uniform: np.ndarray, least: int, most: int, tokens: np.ndarray, ends: np.ndarray, values: np.ndarray
) -> tuple[int, int]:
    """Spell out random numbers from [0, 1) as expressions of more than `least` and fewer than `most` tokens.

    Writes their tokens one after the other, where each ends, and its value. Returns how many there are, and how many
    random numbers they and those thrown away took: the rest begins an expression that they do not suffice for.
    """
    counts = np.zeros((_LEVELS, 10), np.int64)  # of the arguments' values, for every operation that is open
    start, wanted, given = np.zeros(_LEVELS, np.int64), np.zeros(_LEVELS, np.int64), np.zeros(_LEVELS, np.int64)
    level = kept = begin = n = at = used = 0
    while at + _SPENT <= uniform.size:
        if level < _LEVELS - 1:
            at += 1
            if uniform[at - 1] <= _OPERATOR:
                start[level], wanted[level] = n, 2 + int((_MOST - 1) * uniform[at])
                given[level], counts[level] = 0, 0
                level, n, at = level + 1, n + 1, at + 1
                continue
        value = int(10 * uniform[at])
        tokens[n] = _DIGIT + value
        n, at = n + 1, at + 1
        while level:
            counts[level - 1, value] += 1
            given[level - 1] += 1
            if given[level - 1] < wanted[level - 1]:
                break
            level -= 1
            kind = int(4 * uniform[at])
            value = result(kind, counts[level], wanted[level])
            tokens[start[level]], tokens[n] = _FIRST + kind, _CLOSE
            n, at = n + 1, at + 1
        if level == 0:
            if least < n - begin < most:
                ends[kept], values[kept] = n, value
                kept, begin = kept + 1, n
            n, used = begin, at
    return kept, used


@jit
def result(kind: int, counts: np.ndarray, n: int) -> int:
    """Minimum, maximum, median (rounded down), or sum modulo ten of `n` digits, each of which is there so often."""
    if kind == _SM:
        total = 0
        for digit in range(10):
            total += digit * counts[digit]
        return total % 10
    if kind == _MED:
        return (_ranked(counts, (n - 1) // 2) + _ranked(counts, n // 2)) // 2
    return _ranked(counts, n - 1 if kind == _MAX else 0)


@jit
def _ranked(counts: np.ndarray, place: int) -> int:
    value = 0
    while place >= counts[value]:
        place -= counts[value]
        value += 1
    return value


@jit
def reorder(tokens: np.ndarray, lengths: np.ndarray, uniform: np.ndarray) -> None:
    """Put the arguments of every operation into a random order, in the first ``lengths[i]`` tokens of every row."""
    start, given = np.empty((_LEVELS, _MOST + 1), np.int64), np.zeros(_LEVELS, np.int64)
    order, kept = np.empty(_MOST, np.int64), np.empty(tokens.shape[1], tokens.dtype)
    for i in range(len(tokens)):
        row, level = tokens[i], 0
        for n in range(lengths[i]):
            if level:  # the close, too, is where an argument would begin
                start[level - 1, given[level - 1]] = n
                given[level - 1] += 1
            if row[n] == _CLOSE:
                level -= 1
                first, count = start[level, 0], given[level] - 1
                for j in range(count):  # inside out: this one is put among those before it
                    place = int((j + 1) * uniform[i, start[level, j]])
                    order[j] = order[place]
                    order[place] = j
                at = first
                for j in range(count):
                    for m in range(start[level, order[j]], start[level, order[j] + 1]):
                        kept[at] = row[m]
                        at += 1
                row[first:n] = kept[first:n]
            elif row[n] < _CLOSE:
                given[level] = 0
                level += 1
