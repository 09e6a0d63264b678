"""The demo's picture: signal and memory, filtered signal, some periods up close, the kernel and its spectrum."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal as ss

from linscan.demo.job import FILTER_ORDER, MODES, Recording, Result

INK, PALE, BLUE, ORANGE = "#222222", "#a9b4bf", "#1f5f99", "#d1670f"
_STYLE: Any = {
    "font.size": 8.5,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.solid_joinstyle": "round",
}


def draw(recording: Recording, result: Result, caption: str, path: Path) -> None:
    """Write the picture as a PNG. Needs matplotlib; does not touch pyplot's state or backend."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 7.6), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(3, 3, height_ratios=[1, 1, 1.15], width_ratios=[1.25, 1, 1.1])
        above = figure.add_subplot(grid[0, :])
        below = figure.add_subplot(grid[1, :], sharex=above)
        _signal(above, recording, result)
        _filtered(below, recording, result)
        _close_up(figure.add_subplot(grid[2, 0]), recording, result)
        _kernel(figure.add_subplot(grid[2, 1]), recording, result)
        _spectrum(figure.add_subplot(grid[2, 2]), recording, result)
        figure.supxlabel(caption, fontsize=7.5, color="#555555", x=0.01, ha="left")
        figure.savefig(path, format="png")


def _times(recording: Recording) -> np.ndarray:
    return recording.start + np.arange(recording.signal.size) / recording.fs


def _thin(t: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a long line looks like at the picture's width: the least and greatest value of each of 4000 stretches."""
    width = x.size // 4000
    if width < 50:
        return t, x
    stretches = x[: 4000 * width].reshape(4000, width)
    return np.repeat(t[: 4000 * width : width], 2), np.stack([stretches.min(1), stretches.max(1)], 1).ravel()


def _label(what: str, unit: str) -> str:
    return f"{what} ({unit})" if unit else what


def _signal(axes: Any, recording: Recording, result: Result) -> None:
    t = _times(recording)
    axes.plot(*_thin(t, recording.signal), color=PALE, lw=0.6, label="signal")
    axes.plot(
        *_thin(t, result.recalled),
        color=ORANGE,
        lw=1.4,
        label=f"its past, recalled from {result.memory.size} LegS coefficients",
    )
    axes.set_title(recording.description)
    axes.set_ylabel(_label("signal", recording.unit))
    axes.tick_params(labelbottom=False)
    axes.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 0.98), borderaxespad=0)


def _filtered(axes: Any, recording: Recording, result: Result) -> None:
    t = _times(recording)
    axes.plot(*_thin(t, result.filtered), color=BLUE, lw=0.6)
    axes.axhline(0, color="#888888", lw=0.5)
    cutoff = f"{recording.cutoff:.3g} {recording.frequency_unit}"
    axes.set_title(f"baseline removed: Butterworth high-pass of order {FILTER_ORDER} at {cutoff}")
    axes.set_ylabel(_label("filtered", recording.unit))
    axes.set_xlabel(_label("time", recording.time_unit))
    axes.set_xlim(t[0] - 0.005 * (t[-1] - t[0]), t[-1] + 0.005 * (t[-1] - t[0]))


def _close_up(axes: Any, recording: Recording, result: Result) -> None:
    """Some periods from the middle: a few beats, a few years."""
    size = recording.signal.size
    length = min(size, max(48, round(recording.shown * recording.fs / recording.centre)))
    part = slice((size - length) // 2, (size - length) // 2 + length)
    t = _times(recording)[part]
    axes.plot(t, result.filtered[part], color=BLUE, lw=1, label="filtered")
    axes.plot(t, result.by_fft[part], color=ORANGE, lw=1.2, label="S4D output")
    axes.set_title("close up")
    axes.set_xlabel(_label("time", recording.time_unit))
    axes.set_ylabel(_label("signal", recording.unit))
    axes.margins(x=0)
    axes.locator_params(axis="x", nbins=5)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 0.98), borderaxespad=0)


def _kernel(axes: Any, recording: Recording, result: Result) -> None:
    """The kernel over its first periods; what follows is below the line's width."""
    shown = min(result.kernel.size, round(4 * recording.fs / recording.centre))
    in_ms = recording.time_unit == "s"
    t = np.arange(shown) / recording.fs * (1000 if in_ms else 1)
    axes.axhline(0, color="#888888", lw=0.5)
    axes.plot(t, result.target[:shown], color=PALE, lw=2.4, label="wavelet asked for")
    axes.plot(t, result.kernel[:shown], color=INK, lw=1, label="kernel")
    axes.set_title(f"S4D kernel, {MODES} modes")
    axes.set_xlabel(_label("lag", "ms" if in_ms else recording.time_unit))
    axes.set_ylabel("weight per sample")
    axes.legend(loc="upper right")


def _spectrum(axes: Any, recording: Recording, result: Result) -> None:
    fs = recording.fs
    f = np.geomspace(recording.cutoff / 10, fs / 2, 600)
    high_pass = ss.freqz_sos(result.sos, f, fs=fs)[1]
    kernel = ss.freqz(result.kernel, worN=f, fs=fs)[1]
    axes.axvline(recording.centre, color="#888888", lw=0.5, ls=":")
    axes.semilogx(f, _decibels(high_pass), color=BLUE, lw=1, label="high-pass")
    axes.semilogx(f, _decibels(kernel), color=INK, lw=1.2, label="kernel")
    axes.set_ylim(-80, 6)
    axes.set_xlim(f[0], f[-1])
    axes.set_title("spectrum")
    axes.set_xlabel(_label("frequency", recording.frequency_unit))
    axes.set_ylabel("magnitude (dB)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 0.98), borderaxespad=0)


def _decibels(response: np.ndarray) -> np.ndarray:
    return 20 * np.log10(np.maximum(np.abs(response), 1e-9))
