"""``python -m benchmarks.results [FOLDER ...]``: the table of what models learnt, from the logs of their runs.

Each folder is that of a run of ``python -m linscan train``. Its description, its log and its curve are put into
docs/results/ under the folder's name, and docs/results.md is written anew from all that is there: no figure is copied
by hand.
"""

import argparse
import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import write_section

PAGE = Path(__file__).parent.parent / "docs" / "results.md"


@dataclass(frozen=True)
class Target:
    """What a task is for: the words of the table, and the accuracy whose first step is told."""

    words: str
    accuracy: float | None = None


TARGETS = {
    "listops": Target("≥ 60 %; the first operator alone gives 36.5 %", 0.60),
    "memory": Target("100 % within 1000 steps", 1.0),
    "copy": Target("100 %", 1.0),
    "selective-copy": Target("100 %", 0.999),
    "parity": Target("≥ 99 % with negative eigenvalues, near 50 % without", 0.99),
    "modular": Target("near 20 % without negative eigenvalues", 0.99),
    "permutations": Target("≥ 99 % with two products a step and β ≤ 2; one fails", 0.99),
    "recall": Target("≥ 99 %; DeltaNet ≥ GLA ≥ S4D", 0.99),
    "digits": Target("≥ 96 %", 0.96),
    "speech": Target("none was set"),
    "text": Target("fewer bits than the best n-gram of the same text"),
}


def collect(folder: Path, store: Path) -> None:
    """Put a run's description, log and curve into `store`."""
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        about["log"] = [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]
    store.mkdir(parents=True, exist_ok=True)
    text = json.dumps(about, indent=1, ensure_ascii=False)
    (store / f"{folder.name}.json").write_text(text + "\n", encoding="utf-8")
    if (folder / "curve.png").exists():
        shutil.copyfile(folder / "curve.png", store / f"{folder.name}.png")


def page(store: Path) -> str:
    """The table, the curves and the samples, as Markdown."""
    runs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(store.glob("*.json"))}
    lines = ["| task | result | target | steps | time | parameters | device |", "|---|---|---|---|---|---|---|"]
    for task, target in TARGETS.items():
        mine = {name: run for name, run in runs.items() if run["task"] == task}
        lines += [_row(name, run, target) for name, run in mine.items()]
        if not mine:
            lines.append(f"| {task} | no run yet | {target.words} | | | | |")
    for name, run in runs.items():
        lines += ["", f"### {name}", "", "```sh", run["command"], "```", "", result(run)]
        if (store / f"{name}.png").exists():
            lines += ["", f"![Losses and accuracy over the steps of {name}]({store.name}/{name}.png)"]
        if "sample" in run.get("remarks", {}):
            lines += ["", "A sample:", "", "```text", run["remarks"]["sample"].strip("\n"), "```"]
    return "\n".join(lines)


def _row(name: str, run: dict[str, Any], target: Target) -> str:
    last = run["log"][-1]
    time = f"{last['seconds'] / 60:.1f} min" if last["seconds"] >= 90 else f"{last['seconds']:.0f} s"
    about = f"{last['step']:.0f}", time, f"{run.get('parameters', '')}", run["device"]
    cells = [f"[{name}](#{name.lower()})", result(run), target.words, *about]
    return "| " + " | ".join(cells) + " |"


def result(run: dict[str, Any]) -> str:
    """The figures that count, of the last evaluation."""
    last, wanted = run["log"][-1], TARGETS[run["task"]].accuracy
    remarks = {name: value for name, value in run.get("remarks", {}).items() if name != "sample"}
    if remarks:
        return ", ".join(f"{name}: {value}" for name, value in remarks.items())
    if "final" in run:
        return f"{100 * run['final']['test_accuracy']:.1f} % (validation {100 * last['test_accuracy']:.1f} %)"
    text = f"{100 * last['test_accuracy']:.1f} %"
    reached = [row["step"] for row in run["log"] if wanted is not None and row["test_accuracy"] >= wanted]
    return text + (f" (≥ {100 * wanted:g} % from step {reached[0]:.0f})" if reached else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description="Write docs/results.md anew.")
    parser.add_argument("folders", nargs="*", type=Path, help="of runs that have ended")
    for folder in parser.parse_args().folders:
        collect(folder, PAGE.with_suffix(""))
    write_section(PAGE, "runs", page(PAGE.with_suffix("")))


if __name__ == "__main__":
    main()
