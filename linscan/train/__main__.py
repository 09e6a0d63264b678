"""``python -m linscan train``: train a model on a task, from the command line."""

import argparse
import sys
from pathlib import Path
from time import perf_counter

from linscan._trees import leaves
from linscan.train import BadFile, Diverged, Fitted, fit
from linscan.train.checkpoint import NAME
from linscan.train.presets import LAYERS, PRESETS, SIZES, settings, stack


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _arguments(argv)
    preset = PRESETS[args.task]
    layer, size = args.model or preset.model, args.size or preset.size
    folder = args.out or Path("linscan-train") / f"{args.task}-{layer}-{size}"
    if (folder / NAME).exists() and not (args.resume or args.force):
        return _fail(f"{folder} holds a run: --resume goes on with it, --force starts anew, --out takes another folder")
    task = preset.task()
    start = perf_counter()
    try:
        fitted = fit(
            stack(task, layer, size, preset.length),
            task,
            settings(preset, args.steps, args.seed),
            folder=folder,
            resume=args.resume,
            device=args.device,
        )
    except (BadFile, Diverged, RuntimeError) as error:
        return _fail(str(error))
    _say(_report(fitted, perf_counter() - start, folder))
    return 130 if fitted.stopped == "interrupted" else 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m linscan train", description="Train a small model on a task; Ctrl-C stops it with a checkpoint."
    )
    parser.add_argument("task", choices=PRESETS, metavar="task", help="one of: " + ", ".join(PRESETS))
    parser.add_argument("--model", choices=LAYERS, help="the sequence layer (default: the task's)")
    parser.add_argument(
        "--size", choices=SIZES, help="blocks and channels: tiny 1 × 32, small 2 × 64, …, large 8 × 128"
    )
    parser.add_argument("--steps", type=int, help="of the optimiser (default: the task's)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder of the run (default: linscan-train/TASK-MODEL-SIZE)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    parser.add_argument("--force", action="store_true", help="start anew in a folder that holds a run")
    return parser.parse_args(argv)


def _report(fitted: Fitted, seconds: float, folder: Path) -> str:
    count = sum(x.size for x in leaves(fitted.params).values())
    lines = [f"{count} parameters, {seconds:.1f} s, stopped by: {fitted.stopped}; files in {folder}"]
    if fitted.history:
        lines.append(", ".join(f"{name} {value:.6g}" for name, value in fitted.history[-1].items()))
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _fail(text: str) -> int:
    sys.stderr.write(f"python -m linscan train: {text}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
