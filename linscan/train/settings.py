"""How to train: everything about a run but the model and the data."""

from dataclasses import dataclass, field
from typing import Any

from linscan.train.optimisers import AdamW
from linscan.train.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """How to train.

    Parameters
    ----------
    steps : int
        Steps of the optimiser.
    loss : {"cross_entropy", "mse"}
        See `linscan.ops.loss`.
    optimiser : AdamW, Adam or SGD
    schedule : Constant, Cosine or Plateau
        What the learning rates are multiplied by.
    clip : float, optional
        The largest norm that all gradients together may have; larger ones are scaled down to it.
    accumulate : int, default 1
        Batches whose mean gradient makes a step.
    scale : float, optional
        Multiply the loss by this while gradients are computed in 16 bits; halved when they overflow, and that step left
        out; doubled after 2000 steps without.
    start : str, optional
        A file of parameters to begin with, of this model or of one whose batch norms do not tell lengths apart.
    seed : int, default 0
        Of the parameters, the order of the data, and dropout.
    every : int, default 100
        Steps between evaluations, each followed by a checkpoint.
    patience : int, optional
        Stop after as many evaluations without a lower test loss.
    dtype : str, default "float32"
        Of the parameters as the model sees them, and of its arithmetic's inputs. Those of 16 bits are kept, moved and
        stored in float32.
    """

    steps: int
    loss: str = "cross_entropy"
    optimiser: Any = field(default_factory=AdamW)
    schedule: Any = field(default_factory=Constant)
    clip: float | None = None
    accumulate: int = 1
    scale: float | None = None
    start: str | None = None
    seed: int = 0
    every: int = 100
    patience: int | None = None
    dtype: str = "float32"
