"""`fit`: the loop that trains a model."""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linscan.train import device as places
from linscan.train.data import Data
from linscan.train.graph import own_stream
from linscan.train.interrupt import interruptible
from linscan.train.log import Log
from linscan.train.run import Run
from linscan.train.settings import Settings


@dataclass
class Fitted:
    """What `fit` returns: parameters on the host, one dict of figures per evaluation, and why it ended.

    ``final`` has the figures of the parameters with the lowest test loss over data that were kept for the end, if there
    are such data and this is the end.
    """

    params: dict[str, Any]
    history: list[dict[str, float]]
    stopped: str
    final: dict[str, float] = field(default_factory=dict)


def fit(
    model: Any,
    data: Data,
    settings: Settings,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> Fitted:
    """Train a model.

    Parameters
    ----------
    model : Layer
        Usually a `linscan.models.Stack`.
    data : Data
        See `linscan.train.data`; `linscan.train.tasks` has some.
    settings : Settings
    folder : path, optional
        Where the checkpoint, ``log.csv``, ``curve.png`` (with matplotlib) and the best and last parameters go.
    resume : bool, default False
        Go on from the checkpoint in `folder`, if there is one: to the same bits as a run that never stopped.
    device : {"cpu", "gpu"}
    progress : bool, default True
        Show a bar, if tqdm is installed.

    Returns
    -------
    Fitted
        With ``stopped`` one of "steps", "patience" and "interrupted". Ctrl-C ends the run after the step it is at, with
        a checkpoint; a second one ends it at once.

    Raises
    ------
    Diverged
        If the loss or a gradient is not finite. The parameters before that step are in ``diverged.safetensors``.
    BadFile
        If the checkpoint is damaged or of another run.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.models import LRU, Block, Stack
    >>> from linscan.train import AdamW, Settings, fit
    >>> from linscan.train.data import InMemory
    >>> x = {"u": np.eye(2)[[[0, 1], [1, 0]]], "labels": np.array([0, 1])}
    >>> model = Stack((Block(LRU(4, 4)),), inputs=2, outputs=2, pool="last")
    >>> fitted = fit(model, InMemory(x, x, size=2), Settings(steps=40, optimiser=AdamW(0.05)), progress=False)
    >>> fitted.history[-1]["test_accuracy"]
    1.0
    """
    with own_stream(places.library(device)):
        run = Run(model, data, settings, folder, resume, device)
        log = Log(run.folder, settings.steps, run.now.step, progress)
        with interruptible() as interrupted, closing(run), closing(log):
            while not run.now.stopped and run.now.step < settings.steps and not interrupted():
                run.some_steps(log, interrupted)
            log.draw()
        if not run.now.stopped:
            run.now.stopped = "steps" if run.now.step >= settings.steps else ""
        run.save()
        return Fitted(places.to_host(run.kept()), log.history, run.now.stopped or "interrupted", run.final())
