"""A run of training in memory: what a step does to its parameters, and how it is judged once its figures arrive."""

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linscan._arrays import accum_dtype
from linscan.models.layer import Training, typed
from linscan.train import device as places
from linscan.train.checkpoint import NAME, Progress, read_checkpoint, write_checkpoint
from linscan.train.data import Data, ahead
from linscan.train.evaluate import evaluate, loss_vjp
from linscan.train.graph import Replay
from linscan.train.log import Log
from linscan.train.optimisers import global_norm
from linscan.train.packed import Packed
from linscan.train.settings import Settings
from linscan.train.storage import BadFile, dtype_of, flatten, load, nested, save

_BEST = "best.safetensors"


class Diverged(Exception):
    """The loss or a gradient is not finite; the message says at which step and in which parameter."""


@dataclass
class _Step:
    """A step that was taken, or is to be: loss and norm once they arrive, and all it moved as it was before."""

    number: int
    figures: Callable[[], Any]
    grads: dict[str, Any]
    before: list[tuple[Any, Any]] | None


class Run:
    """A run in memory: parameters, moments, progress."""

    def __init__(self, model: Any, data: Data, settings: Settings, folder: Any, resume: bool, device: str) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.folder = None if folder is None else Path(folder)
        self.who = f"{model!r} on {data!r} with {settings!r}"
        self.now = Progress(scale=settings.scale or 1.0)
        self.loss = 0.0  # of the last step that was judged
        self.taken: list[_Step] = []  # that are not yet
        self.dtype = dtype_of(settings.dtype)
        params, moments = model.init(np.random.default_rng([settings.seed, 0]), accum_dtype(self.dtype)), None
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        if resume and self.folder is not None and (self.folder / NAME).exists():
            params, moments, self.now = read_checkpoint(self.folder / NAME, self.who)
        elif settings.start is not None:
            _take(params, settings.start)
        self.xp = places.library(device)
        self.packed = Packed(flatten(places.move(typed(params, self.dtype), self.xp)), settings.optimiser.kind)
        self.packed.load(flatten(places.move(params, self.xp)))
        self.params = nested(self.packed.arrays)
        self.moments = settings.optimiser.start(self.packed.wide)
        if moments is not None:
            given = {slot: flatten(places.move(tree, self.xp)) for slot, tree in moments.items()}
            self.moments |= {slot: self.packed.gather(flat, wide=True) for slot, flat in given.items()}
        self.replay = None if self.xp is np or settings.scale is not None else Replay()

    def some_steps(self, log: Log, interrupted: Callable[[], bool]) -> None:
        """Train until the next evaluation is made, or Ctrl-C."""
        now, s = self.now, self.settings
        last = min(s.steps, (now.step // s.every + 1) * s.every)
        batches = ahead(lambda n: self.data.batch(n, s.seed), now.step * s.accumulate, last * s.accumulate)
        with closing(batches):
            while now.step < last and not interrupted():
                self._step(batches)
                log.tick(self.loss)
        self._judge_steps(0)
        if now.step < last:
            return
        figures = {"step": now.step, "loss": now.loss / max(1, now.counted)}
        figures |= self._evaluated(self.params, self.data.tests())
        now.loss, now.counted = 0.0, 0
        self._judge(figures["test_loss"])
        self.save()
        log.row(figures | {"factor": s.schedule.factor(now.step, now.schedule)})

    def close(self) -> None:
        """Give back the memory that steps on a GPU work in."""
        if self.replay:
            self.replay.close()

    def final(self) -> dict[str, float]:
        """Figures of the best parameters over the data kept for the end, if it has come."""
        if not self.now.stopped or not hasattr(self.data, "finals"):
            return {}
        path = None if self.folder is None else self.folder / _BEST
        if path is None or not path.exists():
            return self._evaluated(self.params, self.data.finals())
        params = typed(load(path), self.dtype)
        return self._evaluated(places.move(params, self.xp), self.data.finals())

    def _evaluated(self, params: Any, batches: Iterable[Any]) -> dict[str, float]:
        given = (places.batch(batch, self.xp, self.dtype) for batch in batches)
        return evaluate(self.model, params, given, self.settings.loss)

    def _step(self, batches: Any) -> None:
        now, s = self.now, self.settings
        total: Any = 0.0
        grads, trainings = None, []
        for n in range(now.step * s.accumulate, (now.step + 1) * s.accumulate):
            training = Training(np.random.default_rng([s.seed, 2, n]))
            batch = places.batch(next(batches), self.xp, self.dtype)
            loss, rows = (
                self.replay(self._gradients, batch, training) if self.replay else self._gradients(batch, training)
            )
            grads = rows if grads is None else {name: g + grads[name] for name, g in rows.items()}
            total = total + loss / s.accumulate
            trainings.append(training)
        self._update(total, grads or {}, trainings)

    def _gradients(self, batch: dict[str, Any], training: Training) -> tuple[Any, dict[str, Any]]:
        """The loss of a batch, and its gradients in rows, times the scale and divided by the batches of a step."""
        options = {name: batch[name] for name in ("reset", "lengths") if name in batch}
        (y, _), back = self.model.apply_vjp(self.params, batch["u"], training=training, **options)
        loss, back_loss = loss_vjp(self.settings.loss, y, batch)
        dparams = back(back_loss(loss.dtype.type(self.now.scale / self.settings.accumulate)))[0]
        return loss, self.packed.gather(flatten(dparams))

    def _update(self, loss: Any, grads: dict[str, Any], trainings: list[Training]) -> None:
        """Move the parameters; on a GPU before it is known here whether loss and gradients are finite."""
        now, s, xp = self.now, self.settings, self.xp
        norm = xp.asarray(global_norm(grads) / now.scale)
        share = norm.dtype.type(1 / now.scale)
        if s.clip:
            share = share * xp.minimum(1, s.clip / xp.maximum(norm, norm.dtype.type(1e-30)))
        figures = places.later(xp.stack([xp.asarray(x, np.float64) for x in (loss, norm)]))
        blind = xp is not np and s.scale is None
        self.taken.append(_Step(now.step + 1, figures, grads, self._copies() if blind else None))
        if not blind and not self._judge_steps(0):
            return
        now.step += 1
        factor = s.schedule.factor(now.step, now.schedule)
        s.optimiser.update(self.packed.wide, grads, self.moments, now.step, factor, share)
        self.packed.narrow()
        for training in trainings:
            training.update()
        self._judge_steps(1)  # the one before is known by now, or soon: nothing waits for this one

    def _judge_steps(self, left: int) -> bool:
        """Look at the steps whose figures are on their way, but for the last `left`; False if one was lost."""
        now, s = self.now, self.settings
        while len(self.taken) > left:
            step = self.taken.pop(0)
            self.loss, norm = map(float, step.figures())
            if not np.isfinite(norm) and np.isfinite(self.loss) and s.scale is not None and now.scale > 1:
                now.step, now.scale, now.clean = now.step + 1, now.scale / 2, 0  # too large for 16 bits
                return False
            if not np.isfinite(norm) or not np.isfinite(self.loss):
                self._diverged(step)
            now.loss, now.counted, now.clean = now.loss + self.loss, now.counted + 1, now.clean + 1
            if s.scale is not None and now.clean % 2000 == 0:
                now.scale *= 2
        return True

    def _copies(self) -> list[tuple[Any, Any]]:
        """Parameters and moments, each beside a copy."""
        rows = [self.packed.wide, *self.moments.values()]
        return [(x, x.copy()) for slot in rows for x in slot.values()]

    def _diverged(self, step: "_Step") -> None:
        self.now.step = step.number - 1
        for x, before in step.before or ():
            x[...] = before
        self.packed.narrow()
        spoilt = [f"the gradient of {n}" for n, g in self.packed.split(step.grads).items() if not self._finite(g)]
        bad = next((n for n, x in self.packed.arrays.items() if not self._finite(x)), [*spoilt, "the loss"][0])
        where = ""
        if self.folder is not None:
            path = self.folder / "diverged.safetensors"
            write_checkpoint(path, self.who, self.kept(), self._moments(), self.now)
            where = f"; the state before it is in {path}"
        raise Diverged(f"fit: step {step.number}: the loss is {self.loss:g}, and {bad} is not finite{where}")

    def _finite(self, x: Any) -> bool:
        return bool(self.xp.isfinite(x).all())

    def _judge(self, loss: float) -> None:
        now, s = self.now, self.settings
        s.schedule.judge(loss, now.schedule)
        if now.best is None or loss < now.best:
            now.best, now.waited = loss, 0
            if self.folder is not None:
                save(self.folder / _BEST, self.kept())
        else:
            now.waited += 1
        if s.patience is not None and now.waited >= s.patience:
            now.stopped = "patience"

    def save(self) -> None:
        """Write the checkpoint and the parameters."""
        if self.folder is not None:
            write_checkpoint(self.folder / NAME, self.who, self.kept(), self._moments(), self.now)
            save(self.folder / "last.safetensors", self.kept())

    def kept(self) -> dict[str, Any]:
        """The parameters as they are trained and stored, in float32 at least."""
        return nested(self.packed.split(self.packed.wide))

    def _moments(self) -> dict[str, Any]:
        return {slot: nested(self.packed.split(rows)) for slot, rows in self.moments.items()}


def _take(params: Any, path: str) -> None:
    """Put a file's numbers into `params`; what was one row there is all rows of a table here."""
    given = flatten(load(path))
    for name, x in flatten(params).items():
        if name not in given or given[name].shape not in (x.shape, x.shape[1:]):
            found = given[name].shape if name in given else "none"
            raise BadFile(f"{path}: of another model: {name} must have shape {x.shape}; got {found}")
        x[...] = given[name]
