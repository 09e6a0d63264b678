"""A training step of S5's ListOps shape on the GPU: time, launches, memory, and the bytes it cannot do without.

Forward, loss, pullback, clipping and AdamW as `linscan.train.fit` runs them, step after step without waiting; the time
is the wall clock's over many of them, which counts the host where it is the slower one.
"""

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import cupy
import numpy as np

from benchmarks.gpu import Row, timed
from linscan.models import Stack, Training
from linscan.ops.activation import activation, activation_vjp, gate_vjp
from linscan.ops.feedthrough import feedthrough_vjp
from linscan.ops.loss import cross_entropy_vjp
from linscan.ops.norm import batch_statistics_norm_vjp
from linscan.train.optimisers import RECURRENT, AdamW, Group, global_norm
from linscan.train.packed import Packed
from linscan.train.presets import LAYERS
from linscan.train.storage import flatten, nested

BATCH, LENGTH, DEPTH, D, STATES, TOKENS, CLASSES = 50, 2048, 8, 128, 16, 17, 10

# Reads and writes of (batch, T, D) arrays by a block whose passes cannot be joined further. Forward: statistics 1, norm
# 2, B u 1, C x + D u 2, f 2, the product 2, gate and sum 4. Back: gate 5, the product 4, f 4, C 2, B 1, D 3, statistics
# 2, norm 4. States, an eighth of the channels, are left out.
PASSES = 14 + 25


def a_step(batch: int, length: int, dtype: Any = np.float32) -> Callable[[], Any]:
    """A training step, ready to run."""
    model = Stack(LAYERS["s5-both"](D, length) * DEPTH, TOKENS, CLASSES, tokens=True, pool="mean")
    rng, optimiser = np.random.default_rng(0), AdamW(3e-3, 0.04, groups=(Group(RECURRENT, 1e-3),))
    params = {name: cupy.asarray(x) for name, x in flatten(model.init(rng, dtype)).items()}
    packed = Packed(params, optimiser.kind)
    tree, moments = nested(packed.arrays), optimiser.start(packed.rows)
    u = cupy.asarray(rng.integers(0, TOKENS, (batch, length)))
    labels, lengths = cupy.asarray(rng.integers(0, CLASSES, batch)), cupy.full(batch, length)

    def run() -> Any:
        training = Training(rng)
        (y, _), back = model.apply_vjp(tree, u, training=training, lengths=lengths)
        loss, back_loss = cross_entropy_vjp(y, labels)
        grads = packed.gather(flatten(back(back_loss(loss.dtype.type(1))[0])[0]))
        share = cupy.minimum(1, 1 / cupy.maximum(global_norm(grads), 1e-30))
        optimiser.update(packed.rows, grads, moments, 1, 1.0, share)
        training.update()
        return loss

    return run


def wall(step: Callable[[], Any], repeats: int = 30) -> float:
    """Milliseconds a step, of steps that follow each other."""
    for _ in range(3):
        step()
    cupy.cuda.Device().synchronize()
    begin = perf_counter()
    for _ in range(repeats):
        step()
    cupy.cuda.Device().synchronize()
    return (perf_counter() - begin) / repeats * 1e3


def passes() -> Iterator[Row]:
    """The operations around the scans, each against the bytes of its arrays."""
    shape = BATCH * LENGTH, D
    x, z, around = (cupy.random.standard_normal(shape, dtype=np.float32) for _ in range(3))
    b = cupy.ones(D, np.float32)
    normal, gated = batch_statistics_norm_vjp(x, b, b)[1], gate_vjp(x, z, b, around)[1]
    curved, direct = activation_vjp(x, "gelu_tanh")[1], feedthrough_vjp(x, z, b)[1]
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "`batch_norm` by the batch": (3, lambda: batch_statistics_norm_vjp(x, b, b)[0]),
        "pullback, with what flows around": (6, lambda: normal(z, around)),
        "`activation` gelu_tanh": (2, lambda: activation(x, "gelu_tanh")),
        "pullback and a sum": (4, lambda: curved(z, around)),
        "`gate` with bias and sum": (4, lambda: gate_vjp(x, z, b, around)[0]),
        "pullback": (5, lambda: gated(around)),
        "`feedthrough`": (3, lambda: feedthrough_vjp(x, z, b)[0]),
        "its pullback and a sum": (4, lambda: direct(around, x)),
    }
    for name, (count, call) in calls.items():
        yield Row(f"{name}, float32 {shape}", count * x.nbytes, timed([call]))


def rows() -> Iterator[Row]:
    yield from passes()
    step, pool = a_step(BATCH, LENGTH), cupy.get_default_memory_pool()
    pool.free_all_blocks()
    ms = wall(step)
    memory = pool.total_bytes() / 2**30
    size = (PASSES * DEPTH + 6) * BATCH * LENGTH * D * 4  # and embedding, last norm and pooling
    work = f"training step of S5, {DEPTH} x {D} channels, {STATES} states, both ways, float32 ({BATCH}, {LENGTH})"
    yield Row(work, size, ms, limit=12.0, peer=f"{memory:.2f} GiB at the most (6)")
