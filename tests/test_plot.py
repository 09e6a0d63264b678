"""The pictures show what they are given, leave matplotlib's settings alone and say what is missing."""

import numpy as np
import pytest

from linscan import scan_trace
from tests.subproc import run

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from linscan import plot  # noqa: E402


@pytest.fixture(autouse=True)
def _settings_stay():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    plt.close("all")


def dots(axes):
    """The dots of a scan network below its top row, as (column, level), by the legend's label."""
    return {
        c.get_label(): {tuple(p) for p in c.get_offsets().tolist()} for c in axes.collections if len(c.get_offsets())
    }


@pytest.mark.parametrize("algorithm", ["sequential", "hillis_steele", "blelloch", "chunked", "lookback"])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 16, 40])
def test_a_scan_network_shows_every_combination(algorithm, n):
    trace = scan_trace(n, algorithm)
    axes = plot.plot_scan_tree(trace)
    axes.figure.canvas.draw()
    rows = [(first, right, level) for level, rows in enumerate(trace.levels, 1) for first, _, right in rows.tolist()]
    shown = dots(axes)
    assert shown.get("a finished prefix", set()) == {(right, level) for first, right, level in rows if first == 0}
    assert shown.get("a span", set()) == {(right, level) for first, right, level in rows if first > 0}
    slanted = axes.collections[2]
    ends = {
        (*map(tuple, s.tolist()), tuple(c)) for s, c in zip(slanted.get_segments(), slanted.get_colors(), strict=True)
    }
    ink = {done: matplotlib.colors.to_rgba(plot.ORANGE if done else plot.BLUE, 0.85) for done in (True, False)}
    lines = [
        (left, right, level, first == 0) for level, r in enumerate(trace.levels, 1) for first, left, right in r.tolist()
    ]
    assert ends == {((left, level - 1), (right, level), ink[done]) for left, right, level, done in lines}
    finished = {column for column, _ in shown.get("a finished prefix", set())}
    assert finished == set(range(1, n))
    assert axes.get_title("left") == f"{algorithm}, {n} elements: work {trace.work}, depth {trace.depth}"


def test_a_kernel_and_its_spectrum():
    k = 0.9 ** np.arange(50) * np.array([[1.0], [2.0]])
    kernel, spectrum = plot.plot_kernel(k, dt=0.5, labels=["one", "two"])
    kernel.figure.canvas.draw()
    line = kernel.get_lines()[-1]
    assert np.array_equal(line.get_xdata(), 0.5 * np.arange(50))
    assert np.array_equal(line.get_ydata(), k[1])
    assert [text.get_text() for text in kernel.get_legend().get_texts()] == ["one", "two"]
    one, two = spectrum.get_lines()
    assert one.get_xdata()[-1] == 1.0  # the Nyquist frequency of samples half a unit apart
    assert one.get_ydata()[0] == pytest.approx(20 * np.log10(k[0].sum()))
    assert two.get_ydata() - one.get_ydata() == pytest.approx(np.full(2049, 20 * np.log10(2)), abs=1e-9)


def test_a_complex_kernel_has_negative_frequencies():
    axes = plot.plot_spectrum(np.exp(2j * np.pi * 0.125 * np.arange(64)))
    (line,) = axes.get_lines()
    assert line.get_xdata()[0] == -0.5
    assert line.get_xdata()[np.argmax(line.get_ydata())] == 0.125
    assert np.ptp(line.get_ydata()) <= 100 + 1e-9
    assert np.isfinite(plot.plot_spectrum(np.zeros(3)).get_lines()[0].get_ydata()).all()


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ([np.exp(-0.01), 0.5j], "2 eigenvalues, the slowest falls to 1/e in 100 steps"),
        ([1.5, -2.0, 0.5], "3 eigenvalues, 2 outside the unit circle"),
        ([1.0, 0.5], "2 eigenvalues, 1 on the unit circle"),
        ([0.0], "1 eigenvalue, all zero"),
        ([], "0 eigenvalues"),
    ],
)
def test_eigenvalues_in_the_unit_disc(values, title):
    axes = plot.plot_eigenvalues(np.array(values))
    axes.figure.canvas.draw()
    assert axes.get_title("left") == title
    (points,) = axes.collections
    colors = [plot.ORANGE if abs(v) > 1 else plot.BLUE for v in values]
    assert np.array_equal(points.get_facecolors()[: len(values)], matplotlib.colors.to_rgba_array(colors, 0.8))
    assert np.array_equal(points.get_offsets(), np.stack([np.real(values), np.imag(values)], axis=-1).reshape(-1, 2))


def test_draws_into_the_axes_it_is_given():
    figure, axes = plt.subplots(1, 3)
    assert plot.plot_scan_tree(scan_trace(4, "blelloch"), axes=axes[0]) is axes[0]
    assert plot.plot_eigenvalues(np.array([0.5]), axes=axes[1]) is axes[1]
    assert plot.plot_spectrum(np.ones(4), axes=axes[2]) is axes[2]
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("k", [np.ones((2, 0)), np.ones((1, 2, 3)), 1.0])
def test_what_is_no_kernel(k):
    with pytest.raises(ValueError, match=r"plot_kernel: k must have shape \(T,\) or \(channels, T\) and some samples"):
        plot.plot_kernel(k)


def test_says_what_is_missing_without_matplotlib():
    text = run(
        """
        import sys
        sys.modules["matplotlib"] = None
        from linscan import plot
        try:
            plot.plot_eigenvalues([0.5])
        except ImportError as error:
            print(error)
        """
    )
    assert text == "linscan.plot needs matplotlib: pip install 'linscan[plot]'\n"
