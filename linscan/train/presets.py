"""What ``python -m linscan train`` runs: a model by name and size, and settings for every task."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

from linscan.models import (
    GILRLSTM,
    GLA,
    LRU,
    RWKV4,
    S4,
    S4D,
    S5,
    Block,
    ChannelMix,
    DeltaNet,
    Hawk,
    Hyena,
    Mamba,
    RetNet,
    Stack,
    griffin,
    mega,
    xlstm,
)
from linscan.train import tasks
from linscan.train.optimisers import RECURRENT, AdamW, Group
from linscan.train.schedules import Cosine
from linscan.train.settings import Settings

# Blocks, or rounds of blocks, and channels.
SIZES = {"tiny": (1, 32), "small": (2, 64), "single": (1, 128), "medium": (4, 128), "large": (8, 128), "wide": (2, 512)}

_BARE: dict[str, Any] = {"activation": "identity", "gate": "none"}  # around layers that have their own
_TRACKING: dict[str, Any] = {"taps": 0, "activation": "identity"}  # keys that point anywhere
_SWITCHING: dict[str, Any] = _TRACKING | {"heads": 8, "spread": 8.0}  # some head flips for one token alone
_OF_S5: dict[str, Any] = {"norm": "batch", "activation": "gelu_tanh", "gate": "half_glu2"}

# From channels and length: a layer, in a block as it comes; or a tuple of blocks, a round.
LAYERS: dict[str, Callable[[int, int], Any]] = {
    "s4d": lambda D, length: S4D(D, 64),
    "s4": lambda D, length: S4(D, 32),
    "s5": lambda D, length: S5(D, 64),
    "s5-both": lambda D, length: _round(
        S5(D, 16, blocks=8, bidirectional=True, C_init="lecun_normal"),
        buckets=(*range(512, length, 128), length),  # as batches of ListOps are made
        **_OF_S5,
    ),
    "lru": lambda D, length: LRU(D, 2 * D, r_min=0.9, r_max=0.999),
    "lru-slow": lambda D, length: _round(
        LRU(D, 2 * D, r_min=0.9999, r_max=0.99999, max_phase=0.05),
        norm="none",  # a norm makes one step's share small
    ),
    "hyena": lambda D, length: Hyena(D, length),
    "hawk": lambda D, length: Hawk(D, heads=4),
    "mamba": lambda D, length: _round(Mamba(D), norm="rms", **_BARE),
    "mamba-negative": lambda D, length: _round(Mamba(D, negative=True), norm="rms", **_BARE),
    "rwkv4": lambda D, length: _round(RWKV4(D, 0.5), ChannelMix(D, 0.5), **_BARE),
    "gla": lambda D, length: GLA(D, taps=4),
    "retnet": lambda D, length: RetNet(D),
    "deltanet": lambda D, length: DeltaNet(D),
    "gated-deltanet": lambda D, length: DeltaNet(D, gated=True),
    "deltanet-bare": lambda D, length: DeltaNet(D, **_SWITCHING),
    "deltanet-negative": lambda D, length: DeltaNet(D, negative=True, **_SWITCHING),
    "deltaproduct": lambda D, length: DeltaNet(D, negative=True, n_householder=2, **_TRACKING),
    "mega": lambda D, length: mega(D),
    "xlstm": lambda D, length: xlstm(D, depth=8),
    "mlstm": lambda D, length: xlstm(D, pattern="m", depth=8),
    "mlstm-sigmoid": lambda D, length: xlstm(D, gate="sigmoid", pattern="m", depth=8),
    "slstm": lambda D, length: xlstm(D, pattern="s"),
    "griffin": lambda D, length: griffin(D),
    "gilr-lstm": lambda D, length: _round(GILRLSTM(D, max(5.0, log(length) + 1)), **_BARE),
}


def _round(*layers: Any, **options: Any) -> tuple[Block, ...]:
    return tuple(Block(layer, **options) for layer in layers)


@dataclass(frozen=True)
class Preset:
    """A task with a model and settings to start from."""

    task: Callable[[], Any]
    model: str
    steps: int
    rate: float
    length: int  # of the longest sequence, tests included
    size: str = "small"
    every: int = 100
    decay: float = 0.01
    slow: float = 0.5  # the recurrences' share of the rate


PRESETS = {
    "parity": Preset(tasks.Parity, "deltanet-negative", 500, 1e-2, 256, "tiny"),
    "modular": Preset(tasks.Modular, "lru", 2000, 1e-3, 256),
    "permutations": Preset(tasks.Permutations, "deltaproduct", 800, 3e-3, 128, "tiny"),
    "memory": Preset(tasks.Memory, "lru-slow", 1000, 1e-2, 1024, "tiny", 50),
    "copy": Preset(tasks.Copy, "lru", 2000, 3e-3, 40),
    "selective-copy": Preset(tasks.SelectiveCopy, "deltanet", 2000, 3e-3, 40),
    "listops": Preset(lambda: tasks.ListOps(reorder=True), "s5-both", 76_800, 3e-3, 2000, "large", 1920, 0.04, 1 / 3),
    "digits": Preset(lambda: tasks.Digits(size=20), "s4d", 800, 5e-3, 784, "medium", 200),
    "recall": Preset(tasks.Recall, "deltanet", 600, 3e-3, 24),
    "speech": Preset(tasks.Speech, "s5", 960, 4e-3, 92, every=48),
    "text": Preset(tasks.Text, "gla", 6000, 2e-3, 256, "large", 500),
}


def stack(task: Any, layer: str, size: str, length: int) -> Stack:
    """The model for a task."""
    depth, D = SIZES[size]
    made = LAYERS[layer](D, length)
    blocks = made if isinstance(made, tuple) else (Block(made),)
    return Stack(blocks * depth, task.inputs, task.outputs, tokens=task.tokens, pool=task.pool)


def settings(preset: Preset, steps: int | None, seed: int, rate: float | None = None) -> Settings:
    """How to train it: AdamW, the recurrences slower, a warm-up of a tenth and then half a cosine."""
    steps = preset.steps if steps is None else steps
    rate = preset.rate if rate is None else rate
    optimiser = AdamW(rate, preset.decay, groups=(Group(RECURRENT, preset.slow * rate),))
    schedule = Cosine(steps, warmup=steps // 10, least=0.01)
    return Settings(steps, optimiser=optimiser, schedule=schedule, clip=1.0, seed=seed, every=preset.every)
