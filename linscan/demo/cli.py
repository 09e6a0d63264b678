"""The demo's command line: what to run it on, the report, and the files it writes."""

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from scipy import signal as ss

import linscan
from linscan.data import load_co2, load_ecg
from linscan.demo import clock, job, picture, report
from linscan.demo.job import Recording, Result
from linscan.demo.read import BadFile, read

BAR_AFTER = 1.0  # seconds
_ENGINES = ("cuda", "cpu", "reference")  # the fastest first


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadFile(message)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m linscan demo",
        description="Remove the baseline of a recording, remember its whole past in a few numbers, run an S4D kernel "
        "over it in three ways, time all of it against SciPy, and draw it.",
    )
    parser.add_argument("file", nargs="?", type=Path, help=".wav, .npy or .csv; without it, the two recordings shipped")
    parser.add_argument("--out", type=Path, default=Path("linscan-demo"), help="folder for the results (%(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite results that are there")
    parser.add_argument("--engine", help="cuda, cpu or reference (default: the first of them that can run here)")
    parser.add_argument("--fs", type=float, help="sampling rate in Hz (default: the file's, else 1 per sample)")
    parser.add_argument("--channel", type=int, help="which channel or column, from 0")
    parser.add_argument("--cutoff", type=float, help="what is slower than this many Hz is baseline (default: fs/720)")
    parser.add_argument("--centre", type=float, help="frequency in Hz the kernel is tuned to (default: the strongest)")
    parser.add_argument("--no-timing", action="store_true", help="leave out the comparison with SciPy")
    arguments = parser.parse_args(argv)
    if arguments.fs is not None and not 0 < arguments.fs < float("inf"):
        parser.error(f"--fs must be a positive number; got {arguments.fs}")
    return arguments


def run(argv: list[str]) -> None:
    """The whole job: everything that can be refused is, before any work."""
    arguments = _arguments(argv)
    recordings = _shipped() if arguments.file is None else [_from_file(arguments)]
    engine = _engine(arguments.engine)
    xp = importlib.import_module("cupy") if engine == "cuda" else np
    drawable = find_spec("matplotlib") is not None
    endings = (".npz", ".png") if drawable else (".npz",)
    targets = [arguments.out / f"{r.name}{ending}" for r in recordings for ending in endings]
    _make_room(arguments.out, targets, arguments.force)
    # CuPy arrays take the cuda engine by themselves, and what the demo does to NumPy arrays beside them another.
    with nullcontext() if engine == "cuda" else linscan.use_engine(engine):
        _say(report.machine(engine))
        for recording in recordings:
            _one(recording, arguments, drawable, xp)
    if not drawable:
        _say('No picture: matplotlib is not installed; `pip install "linscan[plot]"` adds it.')


def _shipped() -> list[Recording]:
    ecg, co2 = load_ecg(), load_co2()
    return [
        Recording("ecg", _title(ecg[2]), *ecg[:2], "mV", "s", "Hz", 0.0, cutoff=0.5, centre=10.0, order=64, shown=35),
        Recording(
            "co2",
            _title(co2[2]),
            *co2[:2],
            "ppm",
            "years",
            "per year",
            1958.24,
            cutoff=0.4,
            centre=1.0,
            order=64,
            shown=5,
        ),
    ]


def _title(text: str) -> str:
    return text[0].upper() + text[1:]


def _from_file(arguments: argparse.Namespace) -> Recording:
    path = arguments.file
    signal, fs = read(path, arguments.fs, arguments.channel)
    units = ("samples", "per sample") if fs is None else ("s", "Hz")
    fs = fs or 1.0
    cutoff = fs / 720 if arguments.cutoff is None else _frequency("--cutoff", arguments.cutoff, 0.0, fs / 2)
    if arguments.centre is None:
        centre = _strongest(signal, fs, cutoff)
    else:  # the kernel is as long as 40 periods
        centre = _frequency("--centre", arguments.centre, fs / 2000, fs / 2)
    return Recording(path.stem, path.name, signal, fs, "", *units, 0.0, cutoff, centre, order=64, shown=8)


def _frequency(name: str, given: float, least: float, limit: float) -> float:
    if not least < given < limit:
        raise BadFile(f"{name} must lie between {least:g} and half the sampling rate, {limit:g}; got {given}")
    return given


def _strongest(signal: np.ndarray, fs: float, cutoff: float) -> float:
    """The frequency that holds most power between the cutoff and a quarter of the sampling rate."""
    f, power = ss.welch(signal, fs, nperseg=min(signal.size, 4096))
    band = (f >= 2 * cutoff) & (f <= fs / 4)
    return float(f[band][np.argmax(power[band])]) if band.any() else fs / 8


def _engine(name: str | None) -> str:
    status = linscan.available()
    if name is None:
        return next(engine for engine in _ENGINES if status[engine].ready)
    if name not in _ENGINES:
        raise BadFile(f"--engine must be one of {', '.join(_ENGINES)}; got {name!r}")
    if not status[name].ready:
        raise BadFile(f"engine {name!r} cannot run here: {status[name].detail}")
    return name


def _make_room(folder: Path, targets: list[Path], force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise BadFile(f"{folder}: is not a folder; name another with --out")
    there = [path for path in targets if path.exists()]
    if there and not force:
        raise BadFile(f"{there[0]}: is already there; --force overwrites it, --out DIR writes elsewhere")
    folder.mkdir(parents=True, exist_ok=True)


def _one(recording: Recording, arguments: argparse.Namespace, drawable: bool, xp: Any) -> None:
    """One recording from signal to files."""
    r = recording
    _say(report.heading(r))
    rows = []
    with _progress(r.name, job.work_of(r) + (0 if arguments.no_timing else clock.COMPARISONS)) as tick:
        result = job.run(r, tick, xp)
        if not arguments.no_timing:
            for comparison in clock.comparisons(r, result, xp):
                rows.append(clock.compare(*comparison))
                tick(1)
    for line in (*report.findings(r, result), *report.timing(rows)):
        _say(line)
    path = arguments.out / f"{r.name}.npz"
    _write(path, lambda temporary: _save(temporary, r, result))
    if drawable:
        path = path.with_suffix(".png")
        _write(path, lambda temporary: picture.draw(r, result, report.caption(r, result), temporary))


def _save(path: Path, r: Recording, result: Result) -> None:
    with path.open("wb") as file:
        np.savez(
            file,
            fs=r.fs,
            signal=r.signal,
            filtered=result.filtered,
            memory=result.memory,
            recalled=result.recalled,
            kernel=result.kernel,
            output=result.by_scan,
        )


def _write(path: Path, save: Callable[[Path], None]) -> None:
    """Write beside `path` and rename: a half-written file never bears its name."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    _say(f"  wrote {path}")


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], Any]]:
    """A bar on the terminal once the work has taken a second, if tqdm is installed; else nothing."""
    if find_spec("tqdm") is None:
        yield lambda done: None
        return
    from tqdm import tqdm

    look: dict[str, Any] = {"bar_format": "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}", "leave": False}
    with tqdm(total=total, desc=name, delay=BAR_AFTER, disable=not sys.stderr.isatty(), **look) as bar:
        yield bar.update


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
