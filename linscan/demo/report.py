"""The demo's words: a short readable report of what was found and how long it took."""

import platform

import numpy as np
import scipy
from scipy import signal as ss

import linscan
from linscan.demo import clock, job
from linscan.demo.job import Recording, Result
from linscan.engines.cpu.pool import resolve_workers


def machine(engine: str) -> str:
    """What runs here."""
    where = linscan.available()[engine].detail if engine == "cuda" else f"up to {resolve_workers(None)} threads"
    return (
        f"linscan {linscan.__version__}, engine {engine}, {where}; "
        f"SciPy {scipy.__version__}, 1 thread; NumPy {np.__version__}, Python {platform.python_version()}; float64"
    )


def heading(r: Recording) -> str:
    """Which recording this is."""
    T = r.signal.size
    return f"\n{r.description}: {T} samples, {r.fs:.6g} {r.frequency_unit}, {T / r.fs:.4g} {r.time_unit}"


def findings(r: Recording, result: Result) -> list[str]:
    """What the filter, the memory and the kernel did."""
    unit = f" {r.unit}" if r.unit else ""
    centred = r.signal - r.signal.mean()
    kept, most = (1 - (_rms(r.signal - x) / (_rms(centred) or 1.0)) ** 2 for x in (result.recalled, result.best))
    theirs = ss.sosfilt(result.sos, r.signal, zi=ss.sosfilt_zi(result.sos) * r.signal[0])[0]
    lines = [
        f"  baseline   sosfilt, high-pass of order {job.FILTER_ORDER} at {r.cutoff:.4g} {r.frequency_unit}: "
        f"{_rms(centred):.3g}{unit} rms about the mean before, {_rms(result.filtered):.3g}{unit} after;",
        f"             {job.differences(result.filtered, theirs)[0]:.1e} of its norm from scipy.signal.sosfilt",
        f"  memory     HiPPO-LegS, {r.order} numbers for {r.signal.size} samples: recalls {100 * kept:.1f} % of the "
        f"variance (the best polynomial of that degree: {100 * most:.1f} %)",
        f"  kernel     S4D-Inv, {job.MODES} complex modes fitted to a wavelet at {r.centre:.4g} {r.frequency_unit}, "
        f"{result.kernel.size} samples: {100 * job.differences(result.kernel, result.target)[0]:.1f} % off the wavelet",
        f"  {'its output, three ways':<36}{'apart in norm':>13}  {'largest':>9}",
    ]
    for name, x, y in _pairs(result):
        norm, largest = job.differences(x, y)
        lines.append(f"    {name:<34}{norm:>13.1e}  {largest:>9.1e}{unit}")
    if result.by_step.size < r.signal.size:
        lines.append(f"    (single steps: the first {result.by_step.size} samples)")
    return lines


def timing(rows: list[clock.Row]) -> list[str]:
    """The comparison with SciPy as a table."""
    if not rows:
        return []
    fewest = min(row.runs for row in rows)
    lines = [f"  {f'time, median of at least {fewest} runs':<44}{'linscan':>12}{'SciPy':>12}   faster  apart"]
    for row in rows:
        ours, theirs = f"{1e3 * row.ours:.3f} ms", f"{1e3 * row.theirs:.3f} ms"
        faster = f"{row.theirs / row.ours:.1f}x"
        lines.append(f"    {row.work:<42}{ours:>12}{theirs:>12}  {faster:>7}  {row.difference:.0e}  {row.peer}")
    return lines


def caption(r: Recording, result: Result) -> str:
    """The line under the picture."""
    apart = [job.differences(x, y)[0] for _, x, y in _pairs(result)]
    return (
        f"{r.signal.size} samples at {r.fs:.6g} {r.frequency_unit}. The S4D output three ways, norm-wise apart: "
        f"FFT and scan {apart[0]:.0e}, scan and single steps {apart[1]:.0e}, FFT and steps {apart[2]:.0e}. "
        f"Drawn by linscan {linscan.__version__}."
    )


def _pairs(result: Result) -> list[tuple[str, np.ndarray, np.ndarray]]:
    return [
        ("FFT convolution against scan", result.by_fft, result.by_scan),
        ("scan against single steps", result.by_scan, result.by_step),
        ("FFT convolution against steps", result.by_fft, result.by_step),
    ]


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
