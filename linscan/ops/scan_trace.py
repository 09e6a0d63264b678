"""What an algorithm of `assoc_scan` does: who is combined with whom, the work and the depth.

In a file of its own because it uses `assoc_scan` from outside: a trace is a scan whose operator keeps a record.
"""

from dataclasses import dataclass, field

import numpy as np

from linscan._arrays import check_count
from linscan.ops.assoc_scan import assoc_scan


@dataclass(frozen=True)
class ScanTrace:
    """The combinations one algorithm makes on `length` elements.

    Parameters
    ----------
    algorithm : str
        Its name.
    length : int
        Number of elements.
    levels : tuple of integer arrays, each (count, 3)
        Level by level, as early as the operands allow: a row ``(first, left, right)`` combines the element that covers
        ``first … left`` with the one that covers ``left+1 … right``. Rows of one level could run side by side.
    """

    algorithm: str
    length: int
    levels: tuple[np.ndarray, ...] = field(repr=False)

    @property
    def work(self) -> int:
        """How often the operator is applied to a pair."""
        return sum(map(len, self.levels))

    @property
    def depth(self) -> int:
        """How many of these applications must follow one another."""
        return len(self.levels)


def scan_trace(length: int, algorithm: str) -> ScanTrace:
    """The combinations ``assoc_scan(…, algorithm=algorithm)`` makes on `length` elements, recorded from a real run.

    Parameters
    ----------
    length : int
        Number of elements.
    algorithm : str
        As in `assoc_scan`.

    Returns
    -------
    trace : ScanTrace
        With `levels`, `work` and `depth`.

    Raises
    ------
    ValueError
        If the algorithm is unknown or the length negative.
    TypeError
        If the length is not an integer.

    See Also
    --------
    assoc_scan : the scan itself.
    linscan.plot.plot_scan_tree : draws a trace.

    Notes
    -----
    With n elements, L = ⌈log₂ n⌉, s(n) the ones in the binary form of n, and m = ⌈n/C⌉ chunks of C = ⌈√n⌉ elements:

    ============= ========================== ============================
    algorithm     work                       depth
    ============= ========================== ============================
    sequential    n - 1                      n - 1
    hillis_steele n L - 2^L + 1              L
    blelloch      2n - 1 - s(n) - ⌊log₂ n⌋   at most 2 ⌊log₂ n⌋
    chunked       n - 2 + (m - 1) C          at most 2C + m - 3
    lookback      at most 2n + n^(3/4)       at most 2C + 2 √(2C)
    ============= ========================== ============================

    For n a power of two these are the textbook's ``n log₂ n - n + 1`` and ``2n - 2 - log₂ n``, the latter with depth
    ``2 log₂ n - 2``. The last two rows hold from n = 3 on. The look-back counts are those of the simulation, in which
    all blocks run at the same speed.

    Examples
    --------
    >>> from linscan import scan_trace
    >>> trace = scan_trace(8, "hillis_steele")
    >>> trace.work, trace.depth
    (17, 3)
    >>> trace.levels[2]  # the last level reaches four columns back
    array([[0, 0, 4],
           [0, 1, 5],
           [0, 2, 6],
           [0, 3, 7]])
    """
    length = check_count("scan_trace", "length", length)
    rows = [np.empty((0, 4), np.int64)]
    column = np.arange(length)

    def record(earlier: tuple[np.ndarray, ...], later: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        (first, left, before), (_, right, beside) = earlier, later
        level = np.maximum(before, beside) + 1
        rows.append(np.stack([level, first, left, right], axis=1))
        return first, right, level

    assoc_scan(record, (column, column, np.zeros_like(column)), algorithm=algorithm)
    combined = np.concatenate(rows)
    combined = combined[np.argsort(combined[:, 0], kind="stable")]
    ends = np.flatnonzero(np.diff(combined[:, 0])) + 1
    levels = tuple(np.split(combined[:, 1:], ends)) if len(combined) else ()
    return ScanTrace(algorithm, length, levels)
