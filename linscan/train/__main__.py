"""``python -m linscan train``: train a model on a task, from the command line."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import linscan
from linscan._trees import leaves
from linscan.train import BadFile, Diverged, Fitted, Settings, fit
from linscan.train import device as places
from linscan.train.checkpoint import NAME
from linscan.train.presets import LAYERS, PRESETS, SIZES, settings, stack
from linscan.train.storage import write


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _arguments(argv)
    preset = PRESETS[args.task]
    layer, size = args.model or preset.model, args.size or preset.size
    folder = args.out or Path("linscan-train") / f"{args.task}-{layer}-{size}"
    if (folder / NAME).exists() and not (args.resume or args.force):
        return _fail(f"{folder} holds a run: --resume goes on with it, --force starts anew, --out takes another folder")
    task, run = preset.task(), replace(settings(preset, args.steps, args.seed, args.rate), start=args.start)
    task = task if args.batch is None else replace(task, size=args.batch)
    start = perf_counter()
    try:
        model, about = stack(task, layer, size, preset.length), _about(args, run, layer, size)
        if args.force or not (folder / NAME).exists():
            _describe(folder, about)
        fitted = fit(model, task, run, folder=folder, resume=args.resume, device=args.device)
        about |= {"parameters": sum(x.size for x in leaves(fitted.params).values()), "stopped": fitted.stopped}
        about |= {"final": fitted.final} if fitted.final else {}
        if hasattr(task, "remarks") and fitted.history:
            about["remarks"] = task.remarks(model, fitted.params, fitted.history[-1])
    except (BadFile, Diverged, RuntimeError) as error:
        return _fail(str(error))
    _describe(folder, about)
    _say(_report(fitted, about, perf_counter() - start, folder))
    return 130 if fitted.stopped == "interrupted" else 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m linscan train", description="Train a small model on a task; Ctrl-C stops it with a checkpoint."
    )
    parser.add_argument("task", choices=PRESETS, metavar="task", help="one of: " + ", ".join(PRESETS))
    parser.add_argument("--model", choices=LAYERS, help="the sequence layer (default: the task's)")
    parser.add_argument(
        "--size", choices=SIZES, help="blocks and channels: tiny 1 × 32, small 2 × 64, …, large 8 × 128, wide 2 × 512"
    )
    parser.add_argument("--steps", type=int, help="of the optimiser (default: the task's)")
    parser.add_argument("--batch", type=int, help="sequences in a batch (default: the task's)")
    parser.add_argument("--rate", type=float, help="learning rate (default: the task's)")
    parser.add_argument("--start", metavar="FILE", help="begin with these parameters (default: random ones)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--device", choices=("cpu", "gpu", "cuda"), default="cpu", help="gpu and cuda are one (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default: linscan-train/TASK-MODEL-SIZE)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    parser.add_argument("--force", action="store_true", help="start anew in a folder that holds a run")
    return parser.parse_args(argv)


def _about(args: argparse.Namespace, run: Settings, layer: str, size: str) -> dict[str, Any]:
    """What a table of results says about a run beside the figures in its log."""
    batch = "" if args.batch is None else f" --batch {args.batch}"
    rate = "" if args.rate is None else f" --rate {args.rate:g}"
    start = "" if args.start is None else f" --start {args.start}"
    device = "" if args.device == "cpu" else f" --device {args.device}"
    command = f"python -m linscan train {args.task} --model {layer} --size {size} --steps {run.steps} --seed {run.seed}"
    return {
        "task": args.task,
        "command": command + batch + rate + start + device,
        "seed": run.seed,
        "steps": run.steps,
        "device": places.name(args.device),
        "linscan": linscan.__version__,
    }


def _describe(folder: Path, about: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "run.json", json.dumps(about, indent=2, ensure_ascii=False).encode())


def _report(fitted: Fitted, about: dict[str, Any], seconds: float, folder: Path) -> str:
    lines = [f"{about['parameters']} parameters, {seconds:.1f} s, stopped by: {fitted.stopped}; files in {folder}"]
    for kind, figures in (("", fitted.history[-1] if fitted.history else {}), ("final: ", fitted.final)):
        if figures:
            lines.append(kind + ", ".join(f"{name} {value:.6g}" for name, value in figures.items()))
    return "\n".join(lines + [f"{name}: {value}" for name, value in about.get("remarks", {}).items()])


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _fail(text: str) -> int:
    sys.stderr.write(f"python -m linscan train: {text}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
