"""What every op on the GPU keeps to, whatever it computes: more rows than a grid has in y, streams, captured graphs."""

from functools import partial

import numpy as np
import pytest

import linscan
from linscan.ops.gated_cells import CELLS
from linscan.ops.norm import layer_norm
from tests.conftest import random
from tests.engines.on_device import on_gpu, poison, same
from tests.engines.test_cuda_assoc import AFFINE, affine
from tests.tolerances import accumulated, assert_close

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

ROWS, T = 70_000, 9
TAPS, SECTIONS = np.float32([1, -0.5, 0.1]), np.float32([[0.2, 0.1, 0, 1, -0.5, 0.1]])
SYSTEM = [np.float32(x) for x in ([[0.5, 0.1], [-0.2, 0.6]], [[1], [2]], [[1, 1]], [[0.5]])]

# A function, the shapes of what each row has, and what all rows share.
CALLS = {
    "scan": (linscan.scan, [(T,), (T,)], []),
    "block_scan": (linscan.block_scan, [(T, 2, 2), (T, 2)], []),
    "lse_scan": (linscan.lse_scan, [(T,), (T,)], []),
    "max_scan": (linscan.max_scan, [(T,), (T,)], []),
    "softmax_average": (linscan.softmax_average, [(T,), (T,)], []),
    "assoc_scan": (lambda a, b: linscan.assoc_scan(affine, (a, b), cuda=AFFINE), [(T,), (T,)], []),
    "selective_scan": (
        lambda u, dt, B, C, A: linscan.selective_scan(u, dt, A, B, C, dt_softplus=True),
        [(T, 3), (T, 3), (T, 2), (T, 2)],
        [-np.ones((3, 2), np.float32)],
    ),
    "short_conv": (partial(linscan.short_conv, axis=-1), [(2, T)], [np.float32([[1, 2, 3], [4, 5, 6]])]),
    "fft_conv": (partial(linscan.fft_conv, method="fft"), [(T,)], [np.arange(T, dtype=np.float32)]),
    "lfilter": (lambda x, a: linscan.lfilter(a[1:], a, x), [(T,)], [TAPS]),
    "sosfilt": (lambda x, sos: linscan.sosfilt(sos, x), [(T,)], [SECTIONS]),
    "allpole": (linscan.allpole, [(T, 2), (T,)], []),
    "dlsim": (lambda u, *system: linscan.dlsim((*system, 1.0), u)[1:], [(T, 1)], SYSTEM),
    "ssm_kernel": (lambda a, c: linscan.ssm_kernel(a, c, T), [(3,), (3,)], []),
    "linear_attention": (linscan.linear_attention, [(T, 4), (T, 4), (T, 3)], []),
    "delta_rule": (linscan.delta_rule, [(T, 4), (T, 4), (T, 3), (T,)], []),
    "dplr_attention": (linscan.dplr_attention, [(T, 4), (T, 4), (T, 3), (T, 4), (T, 4)], []),
    "rnn_scan": (partial(linscan.rnn_scan, "gru"), [(T, 3, 4)], [np.full((3, 4, 4), 0.1, np.float32)]),
    "newton_scan": (
        lambda x, R: linscan.newton_scan(CELLS["para_gru"](diagonal=True), x, R)[:2],
        [(T, 3, 4)],
        [np.full((3, 4), 0.1, np.float32)],
    ),
    "grid_scan": (
        linscan.grid_scan,
        [(3, 2, 2), (3, 2, 2), (3, 2, 5), (3, 2, 2, 2), (3, 2, 2), (3, 2, 2)],
        [],
    ),
    "local_attention": (partial(linscan.local_attention, window=4), [(T, 4), (T, 4), (T, 3)], []),
    "layer_norm": (layer_norm, [(5,)], []),
}

STEPS = {
    "scan_step": (linscan.scan_step, [(3,)] * 3, []),
    "block_step": (linscan.block_step, [(2, 2), (2,), (2,)], []),
    "lse_scan_step": (linscan.lse_scan_step, [(3,)] * 3, []),
    "max_scan_step": (linscan.max_scan_step, [(3,)] * 3, []),
    "softmax_average_step": (linscan.softmax_average_step, [(3,)] * 5, []),
    "selective_step": (
        lambda u, dt, B, C, h, A: linscan.selective_step(u, dt, A, B, C, h=h, dt_softplus=True),
        [(3,), (3,), (2,), (2,), (3, 2)],
        [-np.ones((3, 2), np.float32)],
    ),
    "short_conv_step": (
        lambda u, state, w: linscan.short_conv_step(u, w, None, state),
        [(2,), (2, 2)],
        [np.float32([[1, 2, 3], [4, 5, 6]])],
    ),
    "dlsim_step": (lambda u, x, *system: linscan.dlsim_step((*system, 1.0), u, x), [(1,), (2,)], SYSTEM),
    "linear_attention_step": (linscan.linear_attention_step, [(4,), (4,), (3,), (4, 3)], []),
    "delta_rule_step": (linscan.delta_rule_step, [(4,), (4,), (3,), (), (4, 3)], []),
    "dplr_attention_step": (linscan.dplr_attention_step, [(4,), (4,), (3,), (4,), (4,), (4, 3)], []),
    "rnn_step": (
        lambda x, h, R: linscan.rnn_step("gru", x, R, h=h),
        [(3, 4), (1, 4)],
        [np.full((3, 4, 4), 0.1, np.float32)],
    ),
    "local_attention_step": (partial(linscan.local_attention_step, window=4), [(4,), (4,), (3,)], []),
}


def problem(rng, name, rows):
    run, shapes, shared = (CALLS | STEPS)[name]

    def outputs(*arrays):
        found = run(*arrays)
        return found if isinstance(found, tuple) else (found,)

    return outputs, [random(rng, (rows, *shape), "float32") / 2 for shape in shapes], shared


@pytest.mark.parametrize("name", CALLS)
def test_more_rows_than_a_grid_has_in_y(rng, name):
    run, given, shared = problem(rng, name, ROWS)
    arrays, device = on_gpu(*given), on_gpu(*shared)
    poison()
    found = run(*arrays, *device)
    for at in (0, 65_535, 65_536, ROWS - 1):
        row = slice(at, at + 1)
        alone = run(*(x[row] for x in arrays), *device)
        want = run(*(x[row] for x in given), *shared)
        for x, y, exact in zip(found, alone, want, strict=True):
            assert same(x[row], y), at
            assert_close(cupy.asnumpy(y), exact, 8 * accumulated("float32", T), at)


@pytest.mark.parametrize("name", STEPS)
def test_steps_on_the_card_equal_those_on_the_host(rng, name):
    run, given, shared = problem(rng, name, 3)
    found = run(*on_gpu(*given), *on_gpu(*shared))
    for x, exact in zip(found, run(*given, *shared), strict=True):
        assert isinstance(x, cupy.ndarray)
        assert_close(cupy.asnumpy(x), exact, 8 * accumulated("float32", T), name)


def test_every_step_is_here():
    assert set(STEPS) == {name for name in linscan.__all__ if name.endswith("_step")}


@pytest.mark.parametrize("name", CALLS)
def test_a_captured_graph_runs_again(rng, name):
    run, given, shared = problem(rng, name, 3)
    arrays, device = on_gpu(*given), on_gpu(*shared)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        first = run(*arrays, *device)
        stream.begin_capture()
        found = run(*arrays, *device)
        graph = stream.end_capture()
        arrays[0][...] *= 0.5
        want = run(*arrays, *device)
        graph.launch(stream)
    stream.synchronize()
    assert all(same(x, y) for x, y in zip(found, want, strict=True))
    assert not all(same(x, y) for x, y in zip(first, want, strict=True))
