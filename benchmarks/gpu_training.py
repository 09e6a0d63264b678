"""A training step of S5's ListOps shape on the GPU: time, memory, and the bytes it cannot do without.

A step is one of `linscan.train.fit`, uploading the batch and reading the loss included; its time is the wall clock's
difference between a long and a short run, which counts the host where it is the slower one.
"""

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import cupy
import numpy as np

from benchmarks.gpu import Row, timed
from linscan.models import Stack
from linscan.ops.activation import activation, activation_vjp, gate_vjp
from linscan.ops.half_glu import half_glu_vjp
from linscan.ops.norm import batch_statistics_norm_vjp
from linscan.ops.ports import inlet_vjp, outlet_vjp
from linscan.train import AdamW, Settings, fit
from linscan.train.optimisers import RECURRENT, Group
from linscan.train.presets import LAYERS

BATCH, LENGTH, DEPTH, D, STATES, TOKENS, CLASSES = 50, 2048, 8, 128, 16, 17, 10

# Reads and writes of (batch, T, D) arrays by a block as it is joined into passes. Forward: statistics 1, norm 2, B u 1,
# C x + D u 2, activation, product, gate, sum 4. Back: those 5, their weights 2, C 2, B and D 3, statistics 2, norm 4.
# States, an eighth of the channels, are left out.
PASSES = 10 + 18


class Fixed:
    """One batch, again and again, and no tests; `least` is the GPU's free memory at its lowest, in bytes."""

    def __init__(self) -> None:
        rng, self.least = np.random.default_rng(0), cupy.cuda.runtime.memGetInfo()[0]
        self.given = {
            "u": rng.integers(0, TOKENS, (BATCH, LENGTH)),
            "labels": rng.integers(0, CLASSES, BATCH),
            "lengths": np.full(BATCH, LENGTH),
        }

    def batch(self, n: int, seed: int) -> dict[str, Any]:
        self.least = min(self.least, cupy.cuda.runtime.memGetInfo()[0])
        return self.given

    def tests(self) -> list[dict[str, Any]]:
        return []


def seconds(steps: int, data: Fixed) -> float:
    """The wall clock's, of a run of `fit`."""
    model = Stack(LAYERS["s5-both"](D, LENGTH) * DEPTH, TOKENS, CLASSES, tokens=True, pool="mean")
    optimiser = AdamW(3e-3, 0.04, groups=(Group(RECURRENT, 1e-3),))
    begin = perf_counter()
    fit(model, data, Settings(steps, optimiser=optimiser, clip=1.0, every=steps), device="cuda", progress=False)
    return perf_counter() - begin


def passes() -> Iterator[Row]:
    """The operations around the scans, each against the bytes of its arrays."""
    shape = BATCH * LENGTH, D
    x, z, around = (cupy.random.standard_normal(shape, dtype=np.float32) for _ in range(3))
    b = cupy.ones(D, np.float32)
    normal, gated = batch_statistics_norm_vjp(x, b, b)[1], gate_vjp(x, z, b, around)[1]
    curved = activation_vjp(x, "gelu_tanh")[1]
    w = cupy.random.standard_normal((D, D), dtype=np.float32) / 11
    states = cupy.random.standard_normal((*shape[:1], STATES, 2), dtype=np.float32).view(np.complex64)[..., 0]
    B, C = states[:D, : STATES // 2], states[:D].T
    opened = half_glu_vjp(x, w, b, around)[1]
    v, through = inlet_vjp(x, B, b)
    calls: dict[str, tuple[float, Callable[[], Any]]] = {
        "`batch_norm` by the batch": (3, lambda: batch_statistics_norm_vjp(x, b, b)[0]),
        "pullback, with what flows around": (6, lambda: normal(z, around)),
        "`activation` gelu_tanh": (2, lambda: activation(x, "gelu_tanh")),
        "pullback and a sum": (4, lambda: curved(z, around)),
        "`gate` with bias and sum": (4, lambda: gate_vjp(x, z, b, around)[0]),
        "pullback": (5, lambda: gated(around)),
        "`half_glu`, activation, product and gate": (4, lambda: half_glu_vjp(x, w, b, around)[0]),
        "its pullback": (7, lambda: opened(around)),
        "`outlet`, C x + D u of 16 states": (2.25, lambda: outlet_vjp(states, C, x, b)[0]),
        "`inlet`'s pullback, of 8 states": (3.125, lambda: through(v, around)),
    }
    for name, (count, call) in calls.items():
        yield Row(f"{name}, float32 {shape}", round(count * x.nbytes), timed([call]))


def rows() -> Iterator[Row]:
    yield from passes()
    cupy.get_default_memory_pool().free_all_blocks()
    data, free = Fixed(), cupy.cuda.runtime.memGetInfo()[0]
    seconds(3, data)
    ms = (min(seconds(70, data) for _ in range(2)) - min(seconds(20, data) for _ in range(2))) / 50 * 1e3
    size = (PASSES * DEPTH + 6) * BATCH * LENGTH * D * 4  # and embedding, last norm and pooling
    work = f"training step of S5, {DEPTH} x {D} channels, {STATES} states, both ways, float32 ({BATCH}, {LENGTH})"
    yield Row(work, size, ms, limit=12.0, peer=f"{(free - data.least) / 2**30:.2f} GiB at the most (6)")
