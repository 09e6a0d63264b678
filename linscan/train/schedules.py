"""What the learning rates are multiplied by at every step."""

from dataclasses import dataclass
from math import cos, inf, pi
from typing import Any


@dataclass(frozen=True)
class Constant:
    """1 at every step."""

    def factor(self, step: int, memory: dict[str, Any]) -> float:
        """At `step`, counted from 1; `memory` is what the schedule keeps between steps, plain numbers."""
        return 1.0

    def judge(self, loss: float, memory: dict[str, Any]) -> None:
        """Told of every evaluation's loss."""


@dataclass(frozen=True)
class Cosine(Constant):
    """Linear from 0 over `warmup` steps, then half a cosine down to `least` at step `steps`."""

    steps: int
    warmup: int = 0
    least: float = 0.0

    def factor(self, step: int, memory: dict[str, Any]) -> float:
        """As above."""
        if step <= self.warmup:
            return step / max(1, self.warmup)
        part = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.least + (1 - self.least) * (1 + cos(pi * part)) / 2


@dataclass(frozen=True)
class Plateau(Constant):
    """Multiplied by `down` whenever the evaluation's loss has not improved `patience` times running."""

    patience: int = 5
    down: float = 0.2
    warmup: int = 0

    def factor(self, step: int, memory: dict[str, Any]) -> float:
        """As above."""
        return float(memory.get("factor", 1.0)) * min(1.0, step / max(1, self.warmup))

    def judge(self, loss: float, memory: dict[str, Any]) -> None:
        """Count the evaluations without a new best loss."""
        if loss < memory.get("best", inf):
            memory.update(best=loss, waited=0)
            return
        memory["waited"] = memory.get("waited", 0) + 1
        if memory["waited"] >= self.patience:
            memory.update(factor=memory.get("factor", 1.0) * self.down, waited=0)
