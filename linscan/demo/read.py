"""Reading one channel of a recording from .wav, .npy or .csv, refusing anything doubtful in one clear line."""

import math
import wave
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

SHORTEST = 64  # samples; below this there is nothing to filter, remember or convolve

_NPY = b"\x93NUMPY"
_PCM: dict[int, Any] = {1: np.dtype("u1"), 2: np.dtype("<i2"), 4: np.dtype("<i4")}


class BadFile(Exception):
    """The file cannot be used; the message is one line that says why and, where there is one, the remedy."""


def read(path: Path, fs: float | None = None, channel: int | None = None) -> tuple[np.ndarray, float | None]:
    """One channel of a recording and its sampling rate.

    Parameters
    ----------
    path : Path
        A .wav file (PCM of 8, 16, 24 or 32 bits, scaled to [-1, 1)), a .npy array of real numbers with one or two axes
        (the longer is time), or a .csv table with one row per sample: columns separated by commas, semicolons, tabs or
        blanks; a header and ``#`` comments allowed; a first column of equal steps beside others is the time in seconds.
    fs : float, optional
        The sampling rate in Hz, instead of what the file says.
    channel : int, optional
        Which channel (column), from 0; needed where there are several.

    Returns
    -------
    signal : ndarray, shape (T,), float64
        The channel, at least 64 finite samples.
    fs : float or None
        The sampling rate in Hz; None where neither the file nor the caller gave one.

    Raises
    ------
    BadFile
        If anything about the file is not as above.
    """
    readers: dict[str, Any] = {".wav": _read_wav, ".npy": _read_npy, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise BadFile(f"{path}: unknown kind of file {path.suffix!r}; use {', '.join(readers)}")
    if path.is_dir():
        raise BadFile(f"{path}: is a folder, not a file")
    try:
        if path.stat().st_size == 0:
            raise BadFile(f"{path}: is empty")
        table, own_fs = reader(path)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from error
    signal = _one_channel(path, table, channel)
    if signal.size < SHORTEST:
        raise BadFile(f"{path}: holds {signal.size} samples; at least {SHORTEST} are needed")
    bad = np.flatnonzero(~np.isfinite(signal))
    if bad.size:
        raise BadFile(f"{path}: sample {bad[0]} is {signal[bad[0]]} ({bad.size} such); fill or cut these first")
    return signal, own_fs if fs is None else fs


def _one_channel(path: Path, table: np.ndarray, channel: int | None) -> np.ndarray:
    """One column of a (T, channels) table as float64."""
    count = table.shape[1]
    if count == 0:
        raise BadFile(f"{path}: holds no samples")
    if channel is None and count > 1:
        raise BadFile(f"{path}: has {count} channels; choose one with --channel 0 to {count - 1}")
    if channel is not None and not 0 <= channel < count:
        raise BadFile(f"{path}: there is no channel {channel}; it has {count} (the first is 0)")
    return np.ascontiguousarray(table[:, channel or 0], dtype=np.float64)


def _read_wav(path: Path) -> tuple[np.ndarray, float | None]:
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, promised = (int(x) for x in file.getparams()[:4])
            data = file.readframes(promised)
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a chunk that claims to end elsewhere
        raise BadFile(f"{path}: not a PCM .wav file ({str(error) or 'its header is damaged'})") from error
    if width not in (*_PCM, 3) or rate <= 0:
        raise BadFile(f"{path}: {8 * width} bits at {rate} Hz is not supported; use PCM of 8, 16, 24 or 32 bits")
    found = len(data) // (width * channels)
    if found < promised:
        raise BadFile(f"{path}: is cut short; the header promises {promised} samples, the file has {found}")
    if width == 3:  # put the three bytes above a zero one: a 32-bit sample of the same sign
        padded = np.zeros((found * channels, 4), "u1")
        padded[:, 1:] = np.frombuffer(data, "u1").reshape(-1, 3)
        data, width = padded.tobytes(), 4
    pcm = np.frombuffer(data, _PCM[width]).reshape(-1, channels)
    full = 2.0 ** (8 * width - 1)
    return (pcm - full) / full if width == 1 else pcm / full, float(rate)


def _read_npy(path: Path) -> tuple[np.ndarray, float | None]:
    with path.open("rb") as file:
        start = file.read(len(_NPY))
        if start != _NPY:
            reason = "holds several arrays" if start.startswith(b"PK") else "not a .npy array"
            raise BadFile(f"{path}: {reason}; save one array with numpy.save")
        file.seek(0)
        try:
            array = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, TokenError, MemoryError) as error:
            reason = "holds Python objects" if "allow_pickle" in str(error) else "is cut short or damaged"
            raise BadFile(f"{path}: {reason}; save a plain numeric array with numpy.save") from error
    if array.dtype.kind not in "biuf":
        raise BadFile(f"{path}: holds values of dtype {array.dtype}; real numbers are needed")
    if array.ndim not in (1, 2):
        raise BadFile(f"{path}: has shape {array.shape}; one or two axes are needed")
    if array.ndim == 1:
        return array[:, None], None
    return array if array.shape[0] >= array.shape[1] else array.T, None


def _read_csv(path: Path) -> tuple[np.ndarray, float | None]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: is not text") from error
    lines = [(i, line.split("#")[0].strip()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, line) for i, line in lines if line]
    separator = next((c for c in ",;\t" if lines and c in lines[0][1]), None)
    rows = [(i, [cell.strip() for cell in line.split(separator)]) for i, line in lines]
    if len(rows) > 1 and not any(map(_is_number, rows[0][1])):
        del rows[0]  # the header
    if not rows:
        raise BadFile(f"{path}: holds no samples")
    width = len(rows[0][1])
    for i, cells in rows:
        if len(cells) != width:
            raise BadFile(f"{path}: line {i} has {len(cells)} columns where {width} were expected")
        for cell in cells:
            if not _is_number(cell):
                raise BadFile(
                    f"{path}: line {i}: {cell[:40]!r} is not a number" if cell else f"{path}: line {i}: a blank cell"
                )
    table = np.array([[float(cell) for cell in cells] for _, cells in rows])
    step = _time_step(table)
    return (table, None) if step is None else (table[:, 1:], 1 / step)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _time_step(table: np.ndarray) -> float | None:
    """The step of the first column if it is a time axis beside other columns: growing, in steps equal to 1 %."""
    if table.shape[1] < 2 or table.shape[0] < SHORTEST:
        return None
    steps = np.diff(table[:, 0])
    mean = float(steps.mean())
    equal = math.isfinite(mean) and mean > 0 and bool(np.all(np.abs(steps - mean) <= 0.01 * mean))
    return mean if equal else None
