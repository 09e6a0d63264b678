"""Pictures for teaching and for a first look: kernels, spectra, eigenvalues, scan networks. Needs matplotlib.

Every function draws into the Axes it is given, or into a new pyplot figure, and returns the Axes. None of them calls
``show`` or changes matplotlib's settings.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array

if TYPE_CHECKING:
    from linscan.ops.scan_trace import ScanTrace

INK, PALE, GREY, BLUE, ORANGE = "#222222", "#d5dbe1", "#7d8894", "#1f5f99", "#d1670f"
_LINES = (BLUE, ORANGE, "#2f8f6b", "#8a4fa3", "#b8901c", "#7d8894")
_STYLE = {
    "font.size": 9,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
}


def plot_scan_tree(trace: "ScanTrace", *, axes: Any = None) -> Any:
    """Draw who is combined with whom: time to the right, levels downwards, one line from the left operand of each pair.

    Parameters
    ----------
    trace : ScanTrace
        From `linscan.scan_trace`. Legible up to about 64 elements.
    axes : matplotlib Axes, optional
        Where to draw; None makes a figure.

    Returns
    -------
    axes : matplotlib Axes
        With the drawing: an orange dot is a finished prefix, a blue one covers a shorter span.

    Raises
    ------
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> from linscan import scan_trace
    >>> from linscan.plot import plot_scan_tree
    >>> axes = plot_scan_tree(scan_trace(16, "blelloch"))
    >>> axes.get_title("left")
    'blelloch, 16 elements: work 26, depth 6'
    """
    plt = _pyplot()
    n, depth = trace.length, trace.depth
    with plt.rc_context(_STYLE):
        if axes is None:
            size = (min(max(6.5, 1.3 + 0.42 * n), 12), min(max(1.6, 1.1 + 0.42 * depth), 12))
            axes = plt.subplots(figsize=size, layout="constrained")[1]
        _wires(axes, trace)
        dot = min(30.0, 900 / max(n, depth, 1))
        axes.scatter(range(n), np.zeros(n), s=dot, facecolor="white", edgecolor=INK, linewidth=0.8, zorder=3)
        for color, label in ((BLUE, "a span"), (ORANGE, "a finished prefix")):
            dots = [
                (r[2], d) for d, rows in enumerate(trace.levels, 1) for r in rows if (r[0] == 0) == (color == ORANGE)
            ]
            axes.scatter(*np.reshape(dots, (-1, 2)).T, s=dot, color=color, linewidth=0, zorder=3, label=label)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0, handletextpad=0.1)
        axes.set_title(f"{trace.algorithm}, {n} elements: work {trace.work}, depth {depth}")
        axes.set_xlim(-0.7, n - 0.3)
        axes.set_ylim(depth + 0.6, -0.6)
        axes.set_xlabel("element")
        axes.set_ylabel("level")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return axes


def _wires(axes: Any, trace: "ScanTrace") -> None:
    """Each column as an upright line, dark as long as it is needed, and a slanted line from every left operand."""
    from matplotlib.collections import LineCollection

    needed = np.zeros(trace.length, int)
    slanted, colors = [], []
    for level, rows in enumerate(trace.levels, start=1):
        for first, left, right in rows.tolist():
            needed[right], needed[left] = level, max(needed[left], level - 1)
            slanted.append([(left, level - 1), (right, level)])
            colors.append(ORANGE if first == 0 else BLUE)
    upright = [[(i, 0), (i, end)] for i, end in enumerate(needed)]
    below = [[(i, end), (i, trace.depth)] for i, end in enumerate(needed)]
    axes.add_collection(LineCollection(upright, colors=GREY, linewidths=0.7, zorder=1))
    axes.add_collection(LineCollection(below, colors=PALE, linewidths=0.7, zorder=1))
    axes.add_collection(LineCollection(slanted, colors=colors, linewidths=0.9, alpha=0.85, zorder=2))


def plot_kernel(k: Array, *, dt: float = 1.0, labels: list[str] | None = None, axes: Any = None) -> Any:
    """Draw a convolution kernel and, beside it, its magnitude spectrum in decibels.

    Parameters
    ----------
    k : array_like, (T,) or (channels, T)
        Kernel, real or complex (its real part is drawn); one line a channel.
    dt : float, default 1
        Time between samples; lags and frequencies are in its unit.
    labels : list of str, optional
        One a channel, for a legend.
    axes : pair of matplotlib Axes, optional
        For kernel and spectrum; None makes a figure.

    Returns
    -------
    axes : array of two matplotlib Axes
        Kernel and spectrum.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    ValueError
        If `k` has no samples, or not one or two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.plot import plot_kernel
    >>> kernel, spectrum = plot_kernel(0.9 ** np.arange(64), dt=0.01)
    >>> spectrum.get_ylabel()
    'magnitude (dB)'
    """
    plt = _pyplot()
    rows = _rows("plot_kernel", k)
    with plt.rc_context(_STYLE):
        if axes is None:
            axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")[1]
        lag = dt * np.arange(rows.shape[1])
        axes[0].axhline(0, color=GREY, linewidth=0.5)
        for i, row in enumerate(rows):
            name = labels[i] if labels else None
            axes[0].plot(lag, row.real, color=_LINES[i % len(_LINES)], linewidth=1.1, label=name)
        axes[0].margins(x=0.01)
        axes[0].set_title("kernel")
        axes[0].set_xlabel("lag" if dt != 1 else "lag (samples)")
        if labels:
            axes[0].legend()
        plot_spectrum(rows, dt=dt, axes=axes[1])
    return axes


def plot_spectrum(k: Array, *, dt: float = 1.0, axes: Any = None) -> Any:
    """Draw the magnitude of a kernel's Fourier transform in decibels, over frequency up to the Nyquist frequency.

    Parameters
    ----------
    k : array_like, (T,) or (channels, T)
        Kernel; a complex one is drawn over negative frequencies too.
    dt : float, default 1
        Time between samples; frequencies are cycles per unit of it.
    axes : matplotlib Axes, optional
        Where to draw; None makes a figure.

    Returns
    -------
    axes : matplotlib Axes
        With the drawing, cut off 100 dB below its highest point.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    ValueError
        If `k` has no samples, or not one or two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.plot import plot_spectrum
    >>> axes = plot_spectrum(0.9 ** np.arange(64))
    >>> float(round(axes.lines[0].get_ydata()[0]))  # the gain at frequency 0 is about 1/(1 - 0.9), 20 dB
    20.0
    """
    plt = _pyplot()
    rows = _rows("plot_spectrum", k)
    size = max(4096, rows.shape[1])  # zeros behind a short kernel let its spectrum be drawn smoothly
    if np.iscomplexobj(rows):
        f, response = np.fft.fftshift(np.fft.fftfreq(size, dt)), np.fft.fftshift(np.fft.fft(rows, size), axes=-1)
    else:
        f, response = np.fft.rfftfreq(size, dt), np.fft.rfft(rows, size)
    magnitude = np.abs(response)
    top = float(magnitude.max()) or 1.0
    with plt.rc_context(_STYLE):
        if axes is None:
            axes = plt.subplots(figsize=(4.5, 3), layout="constrained")[1]
        for i, decibels in enumerate(20 * np.log10(np.maximum(magnitude, 1e-5 * top))):
            axes.plot(f, decibels, color=_LINES[i % len(_LINES)], linewidth=1.1)
        axes.margins(x=0.01)
        axes.set_title("spectrum")
        axes.set_xlabel("frequency (cycles per sample)" if dt == 1 else "frequency")
        axes.set_ylabel("magnitude (dB)")
    return axes


def plot_eigenvalues(values: Array, *, axes: Any = None) -> Any:
    """Draw the eigenvalues of a discrete recurrence in the unit disc: inside decays, outside grows.

    Parameters
    ----------
    values : array_like
        Eigenvalues (the ``a_bar`` of a diagonal model), of any shape.
    axes : matplotlib Axes, optional
        Where to draw; None makes a figure.

    Returns
    -------
    axes : matplotlib Axes
        With the drawing. The title tells how many steps the slowest mode takes to fall to 1/e.

    Raises
    ------
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.plot import plot_eigenvalues
    >>> axes = plot_eigenvalues(0.99 * np.exp(1j * np.linspace(0, 3, 8)))
    >>> axes.get_title("left")
    '8 eigenvalues, the slowest falls to 1/e in 99.5 steps'
    """
    plt = _pyplot()
    values = _arrays.to_host(values).ravel()
    modulus = np.abs(values)
    with plt.rc_context(_STYLE):
        if axes is None:
            axes = plt.subplots(figsize=(5, 4.6), layout="constrained")[1]
        angle = np.linspace(0, 2 * np.pi, 361)
        for radius, color in ((1.0, GREY), (0.5, PALE)):
            axes.plot(radius * np.cos(angle), radius * np.sin(angle), color=color, linewidth=0.8, zorder=1)
        axes.axhline(0, color=PALE, linewidth=0.6, zorder=0)
        axes.axvline(0, color=PALE, linewidth=0.6, zorder=0)
        colors = np.where(modulus > 1, ORANGE, BLUE)
        axes.scatter(values.real, values.imag, s=22, c=colors, alpha=0.8, linewidth=0, zorder=2)
        axes.set_aspect("equal")
        axes.set_title(_memory(modulus))
        axes.set_xlabel("real part")
        axes.set_ylabel("imaginary part")
    return axes


def _memory(modulus: np.ndarray) -> str:
    count = "1 eigenvalue" if modulus.size == 1 else f"{modulus.size} eigenvalues"
    if not modulus.size:
        return count
    if modulus.max() > 1:
        return f"{count}, {np.count_nonzero(modulus > 1)} outside the unit circle"
    if modulus.max() == 1:
        return f"{count}, {np.count_nonzero(modulus == 1)} on the unit circle"
    if modulus.max() == 0:
        return f"{count}, all zero"
    return f"{count}, the slowest falls to 1/e in {-1 / np.log(modulus.max()):.3g} steps"


def _rows(who: str, k: Array) -> np.ndarray:
    rows = _arrays.to_host(k)
    if rows.ndim not in (1, 2) or not rows.size:
        raise ValueError(f"{who}: k must have shape (T,) or (channels, T) and some samples; got {rows.shape}")
    return np.atleast_2d(rows)


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("linscan.plot needs matplotlib: pip install 'linscan[plot]'") from error
    return plt
