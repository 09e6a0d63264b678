"""A training step against the sum of its parts' floors.

A step is forward, loss, pullback and AdamW. Its floor is what its parts cannot do without, run one after another on the
same shapes: each product of matrices by NumPy (three of a kind: forward, for its input, for its weights), each FFT by
SciPy on two threads, `ssm_kernel` and its pullback as they are, and for every other operation one triad forward and one
backward over its output: norm, activation, gate, residual, scan.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import scipy.fft

import linscan
from benchmarks.harness import Row, compare, triad
from linscan.models import LRU, S4D, Block, Stack, Training
from linscan.ops.loss import cross_entropy_vjp
from linscan.train import AdamW
from linscan.train.storage import flatten

CLASSES = 10


def a_step(model: Stack, u: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """A training step, ready to run."""
    params, optimiser = model.init(np.random.default_rng(0)), AdamW(1e-3)
    flat = flatten(params)
    moments = optimiser.start(flat)

    def run() -> object:
        (y, _), back = model.apply_vjp(params, u, training=Training())
        loss, back_loss = cross_entropy_vjp(y, labels)
        grads = flatten(back(back_loss(np.float32(1))[0])[0])
        optimiser.update(flat, grads, moments, 1, 1.0)
        return loss

    return run


def together(parts: list[Callable[[], object]]) -> Callable[[], None]:
    """All parts, one after the other."""

    def run() -> None:
        for part in parts:
            part()

    return run


def products(rows: int, inputs: int, outputs: int) -> list[Callable[[], object]]:
    """A product of matrices, and the two of its pullback."""
    rng = np.random.default_rng(0)
    x, w, y = (rng.standard_normal(s).astype(np.float32) for s in ((rows, inputs), (inputs, outputs), (rows, outputs)))
    return [lambda: x @ w, lambda: y @ w.T, lambda: x.T @ y]


def pass_over(size: int) -> list[Callable[[], object]]:
    """One triad forward and one backward."""
    return [triad(*(np.ones(size, np.float32) for _ in range(3))) for _ in range(2)]


def of_block(rows: int, D: int) -> list[Callable[[], object]]:
    """What a block does around its layer: norm, gelu, product to twice the channels, gate, residual."""
    return products(rows, D, 2 * D) + [run for _ in range(4) for run in pass_over(rows * D)]


def of_lru(B: int, T: int, D: int, N: int) -> list[Callable[[], object]]:
    """Products with complex matrices as real ones, and a scan of complex states."""
    return products(B * T, D, 2 * N) + products(B * T, 2 * N, D) + pass_over(B * T * 2 * N)


def of_s4d(B: int, T: int, D: int, N: int) -> list[Callable[[], object]]:
    """Two transforms there and two back of all rows, and the kernel with its pullback."""
    x = np.ones((B, D, scipy.fft.next_fast_len(2 * T, real=True)), np.float32)
    X = scipy.fft.rfft(x)
    a = np.exp((-0.05 + 1j * np.arange(N // 2)) * np.ones((D, 1)) / 20).astype(np.complex64)
    back: Any = linscan.ssm_kernel_vjp(a, a, T)[1]
    dk = np.ones((D, T), np.float32)
    there = [lambda: scipy.fft.rfft(x, workers=2), lambda: scipy.fft.irfft(X, workers=2)]
    return there * 2 + [lambda: linscan.ssm_kernel(a, a, T), lambda: back(dk)]


def rows() -> Iterator[Row]:
    B, depth, D, N = 16, 2, 128, 64
    layers = {"S4D": (S4D(D, N), of_s4d), "LRU": (LRU(D, N), of_lru)}
    for (name, (layer, floors)), T in product(layers.items(), (512, 2048)):
        rng = np.random.default_rng(0)
        model = Stack((Block(layer),) * depth, 1, CLASSES, pool="mean")
        u = rng.standard_normal((B, T, 1)).astype(np.float32)
        step = a_step(model, u, rng.integers(0, CLASSES, B))
        floor = together(depth * (floors(B, T, D, N) + of_block(B * T, D)))
        ours, other = compare(step, floor, seconds=10)
        work = f"training step, {depth} blocks of {name}, N = {N}, float32 (B, T, D) = ({B}, {T}, {D})"
        yield Row(work, "its parts' floors", ours, other, 2.0)
