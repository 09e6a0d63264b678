"""`delta_rule` and `dplr_attention` against a large matrix product of the same run, and against loops over time.

Useful multiply-adds per step and head, with chunks of C = 64 steps and triangles counted as halves: 3 K V for the state
(read by a and q, moved by k) and C (K + V) for products inside a chunk (two of keys, one of values, one solve); with
two directions to write along 4 K V and C (2 K + 2 V). The comparison is with a SGEMM that does as many. The second loop
over time runs all heads side by side.
"""

from collections.abc import Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare

_C = 64
_SIDE = 2048  # of the matrices whose product gives the rate


def _inputs(heads: int, length: int, K: int, V: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((heads, length, K), np.float32) for _ in range(2))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    found = {"q": q, "k": k, "v": rng.standard_normal((heads, length, V), np.float32)}
    found["beta"] = 2 * rng.random((heads, length), np.float32)
    found["scalar"] = -0.1 * rng.standard_exponential((heads, length), np.float32)
    found["vector"] = -0.1 * rng.standard_exponential((heads, length, K), np.float32)
    return found


def _arguments(x: dict[str, np.ndarray], op: str, decay: str | None) -> list[np.ndarray | None]:
    g = None if decay is None else x[decay]
    if op == "delta_rule":
        return [x["q"], x["k"], x["v"], x["beta"], g]
    return [x["q"], x["k"], x["v"], -x["k"], x["k"] * x["beta"][..., None] / 2, g]


def _loop(q: np.ndarray, k: np.ndarray, v: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """The delta rule over time, heads side by side where the arrays have them."""
    S, o = np.zeros((*q.shape[:-2], q.shape[-1], v.shape[-1]), q.dtype), np.empty_like(v)
    for t in range(q.shape[-2]):
        key = k[..., t, :, None]
        old = np.matmul(key.swapaxes(-1, -2), S)
        S += key * (beta[..., t, None, None] * (v[..., t, None, :] - old))
        o[..., t, :] = np.matmul(q[..., t, None, :], S)[..., 0, :]
    return o


def rows() -> Iterator[Row]:
    heads, length = 16, 4096
    a = np.random.default_rng(1).random((_SIDE, _SIDE), np.float32)
    c = np.empty_like(a)
    for K, V in ((64, 64), (128, 128)):
        x, small = _inputs(heads, length, K, V), _inputs(2, 300, K, V)
        for op, decay in (
            ("delta_rule", None),
            ("delta_rule", "scalar"),
            ("delta_rule", "vector"),
            ("dplr_attention", None),
            ("dplr_attention", "vector"),
        ):
            if K > 64 and decay is not None:
                continue
            run, vjp = getattr(linscan, op), getattr(linscan, f"{op}_vjp")
            with linscan.use_engine("reference"):
                want = run(*_arguments(small, op, decay))[0]
            check(op, run(*_arguments(small, op, decay))[0], want, 1e-5)
            given = _arguments(x, op, decay)
            useful = 3 * K * V + _C * (K + V) if op == "delta_rule" else 4 * K * V + 2 * _C * (K + V)
            ours, gemm = compare(lambda r=run, z=given: r(*z), lambda: np.matmul(a, a, out=c), rounds=7)
            rate = 2 * _SIDE**3 / gemm
            name = f"`{op}` float32 ({heads}, {length}, {K}), " + (f"{decay} decay" if decay else "no decay")
            yield Row(name, "SGEMM of its useful operations", ours, 2 * heads * length * useful / rate, 5)
            (o, S), pullback = vjp(*given)
            back, forward = compare(lambda p=pullback, o=o, S=S: p(o, S), lambda r=run, z=given: r(*z), rounds=5)
            yield Row(f"{name}, pullback", "its forward", back, forward, 3.5)
    x = _inputs(heads, length, 64, 64)
    given = [x[n] for n in ("q", "k", "v", "beta")]
    check("loop", _loop(*given), linscan.delta_rule(*given)[0], 1e-4)

    def one_by_one() -> None:
        for h in range(heads):
            _loop(*(z[h] for z in given))

    for name, loop in (("head by head", one_by_one), ("all heads at once", lambda: _loop(*given))):
        ours, other = compare(lambda: linscan.delta_rule(*given), loop, rounds=3)
        yield Row("`delta_rule` float32 (16, 4096, 64)", f"NumPy loop over time, {name}", ours, other, 20, faster=True)
