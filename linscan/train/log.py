"""What a run shows and leaves behind: a bar, a CSV file, a picture of the curve."""

import csv
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any


class Log:
    """The log of a run that begins after `step` of `steps`; rows of the file beyond that are dropped.

    Parameters
    ----------
    folder : Path or None
        Where ``log.csv`` and ``curve.png`` go.
    steps, step : int
        Of the run, and done already.
    progress : bool
        Show a bar, if tqdm is installed.
    """

    def __init__(self, folder: Path | None, steps: int, step: int, progress: bool) -> None:
        self.folder, self.start = folder, perf_counter()
        self.history = [row for row in self._read() if row["step"] <= step]
        self.before = self.history[-1]["seconds"] if self.history else 0.0
        if folder is not None:
            self._write()
        self.bar: Any = None
        if progress and find_spec("tqdm") is not None:
            from tqdm import tqdm

            self.bar = tqdm(total=steps, initial=step, unit="step")

    def tick(self, loss: float) -> None:
        """A step is done."""
        if self.bar is not None:
            self.bar.update()
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def row(self, figures: dict[str, float]) -> None:
        """An evaluation is done."""
        self.history.append(figures | {"seconds": round(self.before + perf_counter() - self.start, 3)})
        if self.folder is not None:
            self._write()
        if self.bar is not None:
            self.bar.write("  ".join(f"{name} {value:.6g}" for name, value in self.history[-1].items()))

    def draw(self) -> None:
        """Draw the curve, if there is a folder and matplotlib."""
        if self.folder is not None and self.history and find_spec("matplotlib") is not None:
            draw(self.history, self.folder / "curve.png")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()

    def _read(self) -> list[dict[str, float]]:
        if self.folder is None or not (self.folder / "log.csv").exists():
            return []
        with open(self.folder / "log.csv", newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    def _write(self) -> None:
        folder = self.folder
        if folder is None:
            return
        part = folder / ".log.csv.part"
        with open(part, "w", newline="", encoding="utf-8") as file:
            if self.history:
                writer = csv.DictWriter(file, list(self.history[0]))
                writer.writeheader()
                writer.writerows(self.history)
        part.replace(folder / "log.csv")


def draw(history: list[dict[str, float]], path: Path) -> None:
    """Losses and, where there is one, the accuracy over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = [row["step"] for row in history]
    lines = [axes.plot(steps, [row[n] for row in history], label=n.replace("_", " "))[0] for n in ("loss", "test_loss")]
    if "test_accuracy" in history[0]:
        twin = axes.twinx()
        lines += twin.plot(steps, [row["test_accuracy"] for row in history], "k:", label="test accuracy")
        twin.set(ylim=(0, 1.03), ylabel="accuracy")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(handles=lines, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)  # above the curves
    figure.savefig(path, dpi=120)
