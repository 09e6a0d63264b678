"""Tasks whose sequences are drawn: batch n of a run follows from n and the seed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from linscan.train.data import Batch

_TESTS = 7919  # the seed of all evaluations


@dataclass(frozen=True)
class Drawn:
    """A task that draws its sequences; see `Data`.

    Parameters
    ----------
    size : int, default 64
        Sequences in a batch.
    evaluations : int, default 4
        Test batches.
    """

    size: int = 64
    evaluations: int = 4

    tokens = True  # whether `u` holds tokens, `inputs` of them, or `inputs` features
    pool = "none"

    @property
    def inputs(self) -> int:
        """Tokens or features."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """Classes."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, test: bool) -> Batch:
        """One batch, for training or for a test."""
        raise NotImplementedError

    def batch(self, n: int, seed: int) -> Batch:
        """Batch n of training."""
        return self.draw(np.random.default_rng([seed, 3, n]), False)

    def tests(self) -> Iterator[Batch]:
        """The test batches, whatever the run's seed."""
        return (self.draw(np.random.default_rng([_TESTS, n]), True) for n in range(self.evaluations))
