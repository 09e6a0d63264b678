"""``python -m linscan``: what is installed, the demonstration, and the benchmarks."""

import argparse
import importlib
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import linscan

_ROOT = Path(linscan.__file__).resolve().parent.parent


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    commands = {
        "info": "print versions, engines, threads and the kernel cache",
        "demo": "filter a recorded signal and run a state-space model over it, three ways",
        "bench": "measure every op against its peers and the memory's speed (needs a source checkout)",
    }
    if find_spec("linscan.train") is not None:
        commands["train"] = "train a small model on one of the shipped tasks"
    parser = argparse.ArgumentParser(
        prog="python -m linscan",
        description="Linear recurrences for NumPy and CuPy.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:8}{text}" for name, text in commands.items()),
    )
    parser.add_argument("command", choices=commands, metavar="command", help="one of: " + ", ".join(commands))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the command takes; try: COMMAND --help")
    parser.add_argument("--version", action="version", version=f"linscan {linscan.__version__}")
    args = parser.parse_args(argv)
    return {"info": _info, "demo": _demo, "bench": _bench, "train": _train}[args.command](args.arguments)


def _info(argv: list[str]) -> int:
    """Print versions, engines, threads and the kernel cache."""
    argparse.ArgumentParser(prog="python -m linscan info", description=_info.__doc__).parse_args(argv)
    linscan.show_config()
    return 0


def _demo(argv: list[str]) -> int:
    return importlib.import_module("linscan.demo").main(argv)


def _train(argv: list[str]) -> int:
    return importlib.import_module("linscan.train.__main__").main(argv)


def _bench(argv: list[str]) -> int:
    if not (_ROOT / "benchmarks" / "__main__.py").exists():
        print(
            "python -m linscan bench: the benchmarks are not installed with linscan; run it from a source checkout",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(_ROOT))
    sys.argv = ["benchmarks", *argv]
    runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
