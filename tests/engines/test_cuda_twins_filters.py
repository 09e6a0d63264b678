"""The arithmetic of the GPU's filters on a CPU: rows in chunks, matrices by squaring, states from edge to edge.

The device code cannot run here. This twin follows `reduce`, `carry` and `run` (chunks.py, chunks.cuh) in NumPy, owner
by owner, and is held to the plain loop: whatever the length, for poles near the unit circle, beyond it, and with NaN.
"""

import shutil
import subprocess

import numpy as np
import pytest
import scipy.signal

from linscan.engines.cuda import _load, chunks
from linscan.engines.cuda.chunks import Cut, cut
from tests import oracles
from tests.tolerances import assert_close, filtered


def steps(b, a, z, x):
    """The loop of one chunk: the outputs, and the state it leaves."""
    z, y = list(z), np.empty(len(x), np.result_type(b, x))
    for t in range(len(x)):
        y[t] = z[0] + b[0] * x[t]
        z = [
            (z[k + 1] if k + 1 < len(z) else 0)
            + (b[k + 1] * x[t] if k + 1 < len(b) else 0)
            - (a[k + 1] * y[t] if k + 1 < len(a) else 0)
            for k in range(len(z))
        ]
    return y, np.array(z, y.dtype)


def matrices(b, a, order, parts):
    """Of a chunk and of an owner's chunks, by squaring in more than double precision."""
    b, a = np.float64(b), np.float64(a)
    matrix = np.longdouble(1) * np.stack([steps(b, a, unit, np.zeros(1))[1] for unit in np.eye(order)], axis=1)
    found = []
    with np.errstate(over="ignore", invalid="ignore"):
        for count in (parts.size, parts.span):
            for _ in range(count.bit_length() - 1):
                matrix = matrix @ matrix
            found.append(matrix)
    return found


def tame(matrix):
    return bool((np.abs(matrix) <= 1024).all())


def carry(first, left, short, long, parts):
    """The states at the edges, from what chunks leave from rest, and the chunk that goes on to the row's end."""
    wide = np.float64 if first.dtype == np.float32 else np.longdouble
    short, long = wide(short), wide(long)
    owners = parts.threads // chunks.power_of_two(len(first))
    entering = []
    for owner in range(owners):
        z = np.zeros(len(first), wide)
        for f in left[owner * parts.span : (owner + 1) * parts.span]:
            z = short @ z + f
        entering.append(z)
    z = wide(first)
    for owner in range(owners):
        f, entering[owner] = entering[owner], z
        if tame(long):
            z = long @ z + f
        else:
            for f in left[owner * parts.span : (owner + 1) * parts.span]:
                z = short @ z + f
    edges, bad = [], len(left)
    for c in range(len(left)):
        z = entering[c // parts.span] if c % parts.span == 0 else short @ z + left[c - 1]
        edges.append(z.astype(left[0].dtype))
        if not np.isfinite(edges[c]).all():
            bad = min(bad, max(0, c - 1))
    return edges, bad if tame(short) else 0


@np.errstate(all="ignore")
def twin(b, a, x, zi, parts):
    order = max(len(b), len(a)) - 1
    if parts.chunks == 1:
        return steps(b, a, zi, x)
    pieces = [x[i * parts.size : (i + 1) * parts.size] for i in range(parts.chunks)]
    left = [steps(b, a, np.zeros(order, x.dtype), piece)[1] for piece in pieces]
    edges, stop = carry(zi, left, *matrices(b, a, order, parts), parts)
    y = []
    for c in range(min(stop + 1, parts.chunks)):
        piece, zf = steps(b, a, edges[c], x[c * parts.size :] if c == stop else pieces[c])
        y.append(piece)
    return np.concatenate(y), zf


def small(length, order, size=8, owners=4):
    """A cut like those of `cut`, in miniature."""
    count = -(-length // size)
    span = chunks.power_of_two(-(-count // owners))
    return Cut(size, count, span, owners * chunks.power_of_two(order)) if count > 1 else Cut(length, 1, 1, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 32, 33, 64, 65, 257])
def test_equals_the_loop(rng, length, dtype):
    for design in (scipy.signal.butter(3, 0.3), scipy.signal.butter(2, 0.01), ([1.0, 2, 3], [1.0]), ([2.0], [1, -0.9])):
        b, a = (np.asarray(v, dtype) for v in design)
        order = max(len(b), len(a)) - 1
        x, zi = rng.standard_normal(length).astype(dtype), rng.standard_normal(order).astype(dtype)
        want, state = oracles.lfilter(b, a, x, zi)
        y, zf = twin(b, a, x, zi, small(length, order))
        # Together: a state that happens to be small carries the roundings of the larger ones before it.
        assert_close(np.concatenate([y, zf]), np.concatenate([want, state]), filtered(dtype, a))


@pytest.mark.parametrize("radius", [1.0, 1.002, 1.05, 2.0, 30.0])
def test_unstable_filters_do_what_the_loop_does(rng, radius):
    b, a = np.float32([1, 0.5]), np.float32(np.poly([radius, -radius]))
    x = rng.standard_normal(100).astype(np.float32)
    with np.errstate(all="ignore"):
        want, _ = steps(b, a, np.zeros(2, np.float32), x)
    y, _ = twin(b, a, x, np.zeros(2, np.float32), small(100, 2))
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(y), finite)
    scale = np.maximum.accumulate(np.abs(want[finite]))  # the error grows as the signal does
    assert_close(y[finite] / scale, want[finite] / scale, 1e-4)


def test_not_a_number_reaches_only_what_follows(rng):
    x = rng.standard_normal(100)
    broken = x.copy()
    broken[37] = np.nan
    for b, a in (([1.0, 0.3], [1.0, -0.5]), ([1.0, 2.0, 3.0], [1.0])):
        zero = np.zeros(len(b) - 1)
        y, got = (twin(np.array(b), np.array(a), v, zero, small(100, len(zero)))[0] for v in (x, broken))
        want = oracles.lfilter(b, a, broken)[0]
        np.testing.assert_array_equal(got[:37], y[:37])
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


def pole_twin(a, x, zi, size):
    """`allpole` in chunks: each from rest and from every unit vector, then from edge to edge, then once more."""
    lags = len(zi)

    def chunk(z, a, x):
        y = []
        for line, value in zip(a, x, strict=True):
            y.append(value - line @ z)
            z = np.concatenate([y[-1:], z[:-1]])
        return y, z

    y, edge, n = [], np.float64(zi), len(x)
    for begin in range(0, n, size):
        end, state = min(n, begin + size), edge.astype(x.dtype)
        piece, piece_x = a[begin:end], x[begin:end]
        matrix = np.stack([chunk(unit, piece, np.zeros_like(piece_x))[1] for unit in np.eye(lags, dtype=x.dtype)], 1)
        if not (np.abs(matrix) <= 1024).all():
            return np.array(y + chunk(state, a[begin:], x[begin:])[0])
        y += chunk(state, piece, piece_x)[0]
        edge = matrix @ edge + chunk(np.zeros(lags, x.dtype), piece, piece_x)[1]
    return np.array(y)


@pytest.mark.parametrize("growth", [0.9, 1.2, 4.0])
@pytest.mark.parametrize("lags", [1, 2, 4])
def test_time_varying_coefficients(rng, lags, growth):
    a = rng.standard_normal((60, lags))
    a *= 0.5 / np.abs(a).sum(axis=1, keepdims=True)
    a[20:30] *= 2 * growth
    x, zi = rng.standard_normal(60), rng.standard_normal(lags)
    assert_close(pole_twin(a, x, zi, 8), oracles.allpole(a, x, zi)[0], 1e-13)


@pytest.mark.parametrize("length", [1, 255, 256, 257, 5000, 1 << 18, (1 << 18) + 1, 1 << 23, (1 << 23) + 1, 1 << 31])
@pytest.mark.parametrize("order", [1, 2, 3, 8, 16, 17])
def test_the_cut_covers_a_row(length, order):
    parts = cut(length, order)
    assert (parts.chunks - 1) * parts.size < length <= parts.chunks * parts.size
    if parts.chunks == 1:
        return
    owners, rest = divmod(parts.threads, chunks.power_of_two(order))
    assert rest == 0
    assert parts.threads % 32 == 0
    assert parts.threads <= 1024
    assert owners * parts.span >= parts.chunks
    for doubled in (parts.size, parts.span):
        assert doubled & (doubled - 1) == 0


def filters(sections, b, a, complex_taps=0, lanes=0):
    taps = {"SECTIONS": sections, "TAPS_B": b, "TAPS_A": a, "COMPLEX_TAPS": complex_taps, "LANES": lanes}
    return "filters.cu", taps


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        (filters(0, 2, 2), "float32"),
        (filters(0, 9, 9, lanes=1), "float32"),
        (filters(4, 1, 1), "float32"),
        (filters(8, 1, 1, lanes=1), "float32"),
        (filters(0, 17, 17, complex_taps=1), "complex128"),
        (filters(0, 40, 1), "float64"),
        (("lti.cu", {"STATES": 4, "INPUTS": 2, "OUTPUTS": 2}), "float32"),
        (("lti.cu", {"STATES": 17}), "complex64"),
        (("allpole.cu", {"LAGS": 4}), "float32"),
        (("allpole.cu", {"LAGS": 20}), "complex128"),
    ],
)
def test_device_code_compiles_without_spills(tmp_path, variant, dtype):
    name, sizes = variant
    source = tmp_path / "kernel.cu"
    source.write_text(_load.text(name, dtype, *sizes.items()))
    targets = [f"-gencode=arch=compute_{card},code=sm_{card}" for card in (75, 80, 90)]
    command = ["nvcc", *_load.OPTIONS, *targets, "-Xptxas", "-v", "-c", "-o", str(tmp_path / "kernel.o"), str(source)]
    report = subprocess.run(command, capture_output=True, text=True, check=False)
    assert report.returncode == 0, report.stderr
    if dtype == "float32":
        sm_90 = [line for line in report.stderr[report.stderr.index("'sm_90'") :].splitlines() if "spill" in line]
        assert len(sm_90) == 3
        assert all(", 0 bytes spill stores, 0 bytes spill loads" in line for line in sm_90), sm_90
