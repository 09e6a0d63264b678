"""The log-space scans against the triad on the same bytes, and against what NumPy has for them."""

from collections.abc import Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare, triad

SHAPES = [((4096, 4096), -1, "float32"), ((4, 8192, 512), -2, "float32"), ((4, 8192, 256), -2, "float64")]
TARGETS = {"max_scan": (3.0, 2.0, 2.0), "lse_scan": (6.0, 6.0, 6.0)}  # in times of the triad, for each shape


def _inputs(shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    a, b, v = (rng.random(shape, dtype=np.dtype(dtype)) for _ in range(3))
    return -a, 8 * b, v


def _check(axis: int, dtype: str) -> None:
    a, b, v = (x[:7, :300] for x in _inputs((7, 300, 3) if axis == -2 else (7, 300), dtype))
    for name, run in (
        ("max_scan", lambda: linscan.max_scan(a, b, axis=axis)),
        ("lse_scan", lambda: linscan.lse_scan(a, b, axis=axis)),
        ("softmax_average", lambda: linscan.softmax_average(b, v, a, axis=axis)[0]),
    ):
        with linscan.use_engine("reference"):
            want = run()
        check(name, run(), want, 1e-5 if dtype == "float32" else 1e-13)


def rows() -> Iterator[Row]:
    for i, (shape, axis, dtype) in enumerate(SHAPES):
        _check(axis, dtype)
        a, b, v = _inputs(shape, dtype)
        where = f"{dtype} {shape}, axis {axis}"

        def floor(a: np.ndarray = a, b: np.ndarray = b) -> None:
            triad(a, b, np.empty_like(a))()

        for name, targets in TARGETS.items():
            run = getattr(linscan, name)
            ours, other = compare(lambda f=run, a=a, b=b, x=axis: f(a, b, axis=x), floor)
            yield Row(f"`{name}` {where}", "triad, allocating", ours, other, targets[i])

        def floor_5(a: np.ndarray = a, b: np.ndarray = b, v: np.ndarray = v) -> None:
            triad(a, b, v, np.empty_like(a), np.empty_like(a))()

        ours, other = compare(lambda a=a, b=b, v=v, x=axis: linscan.softmax_average(b, v, a, axis=x), floor_5)
        yield Row(f"`softmax_average` {where}", "triad, 3 read 2 written, allocating", ours, other, 6.0)
    _, b, v = _inputs((1024, 4096), "float32")
    for name, ufunc in (("max_scan", "maximum"), ("lse_scan", "logaddexp")):
        run, peer = getattr(linscan, name), getattr(np, ufunc).accumulate
        ours, other = compare(lambda f=run: f(np.float32(0), b), lambda f=peer: f(b, axis=1))
        target = 3.0 if name == "lse_scan" else 1.0
        yield Row(
            f"`{name}` without decay, float32 (1024, 4096)", f"`np.{ufunc}.accumulate`", ours, other, target, True
        )
    s, v = b[:4, :512], v[:4, :, None].repeat(64, -1)[:, :512]

    def attention() -> np.ndarray:
        scores = np.where(np.tri(s.shape[1], dtype=bool), s[:, None, :], -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return (weights / weights.sum(axis=-1, keepdims=True)) @ v

    check("softmax_average", linscan.softmax_average(s[..., None], v, axis=-2)[0], attention(), 1e-5)
    ours, other = compare(lambda: linscan.softmax_average(s[..., None], v, axis=-2), attention)
    yield Row("`softmax_average`, one score for 64 values, 4 × 512 steps", "masked softmax", ours, other, 3.0, True)
