"""``python -m benchmarks [op ...]``: the CPU table, printed and, when all ops ran, put into the documentation."""

import argparse
import importlib
from itertools import chain
from pathlib import Path

from benchmarks.harness import DOCUMENT, HEADER, README, machine, peers, tabulate, write_section


def main() -> int:
    names = sorted(p.stem.removeprefix("bench_") for p in Path(__file__).parent.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios to floors and peers of this run.")
    parser.add_argument("ops", nargs="*", metavar="op", help=f"which of {', '.join(names)} (default: all)")
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    unknown = sorted(set(options.ops) - set(names))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = options.ops or names
    print(machine())
    modules = [importlib.import_module(f"benchmarks.bench_{name}") for name in chosen]
    measured = tabulate(chain.from_iterable(m.rows() for m in modules))
    if chosen == names and not options.dry:
        table = "\n".join([HEADER, *(row.markdown() for row in measured)])
        write_section(DOCUMENT, "cpu", f"Machine: {machine()}.\n\n{table}")
        write_section(README, "cpu", f"{machine()}.\n\n{peers(measured)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
