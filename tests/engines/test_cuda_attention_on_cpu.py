"""The device code of `linear_attention`, compiled for the host and held to the plain loop (see test_cuda_on_cpu.py)."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from linscan.engines.cuda import _load
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.test_cuda_on_cpu import GLUE, Array, _value, empty
from tests.tolerances import assert_close, eps

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]
DTYPE = dtype_of("bfloat16")  # float16 is converted by instructions that only a card has


class Kernel:
    """One variant, compiled when it first runs."""

    max_dynamic_shared_size_bytes = 1 << 20

    def __init__(self, folder, loaded, name, *key):
        self.folder, self.loaded, self.name, self.key = folder, loaded, name, key

    def __call__(self, grid, threads, arguments, shared_mem=0):
        if self.key not in self.loaded:
            self.loaded[self.key] = self.compiled(*self.key)
        values = [np.array([x]) if isinstance(x, np.float32) else _value(x) for x in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        run = getattr(self.loaded[self.key], f"on_cpu_{self.name}")
        run(ctypes.c_longlong(grid[0]), ctypes.c_longlong(threads[0]), pointers)

    def compiled(self, source, dtype, macros):
        primitives = (Path(_load.__file__).parent / "mma.cuh").read_text(encoding="utf-8")
        primitives = primitives.replace("#pragma once\n", "").replace('#include "numbers.cuh"\n', "")
        code = _load.text(source, dtype, *macros)
        assert primitives.strip() in code
        code = code.replace(primitives.strip(), '#include "mma_on_cpu.h"\n')
        code = code.replace("extern __shared__ __align__(16) u8 memory[]", "alignas(16) static u8 memory[1 << 18]")
        place = self.folder / f"{len(self.loaded)}.cpp"
        code = '#include "cuda_on_cpu.h"\n' + code + GLUE
        for name in ("run", "reduce", "carry"):
            code += f'extern "C" void on_cpu_{name}(long long blocks, long long threads, void** a) {{\n'
            code += f"  launch(blocks, threads, [=] {{ call({name}, a); }});\n}}\n"
        place.write_text(code)
        command = ["g++", "-std=c++20", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
        command += [f"-I{Path(__file__).parent}", "-o", str(place.with_suffix(".so")), str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(place.with_suffix(".so")))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder, loaded = tmp_path_factory.mktemp("device_code"), {}
    path = Path(_load.__file__).with_name("linear_attention.py")
    spec = importlib.util.spec_from_file_location("linear_attention_on_cpu", path)
    module = importlib.util.module_from_spec(spec)
    cupy = types.ModuleType("cupy")
    cupy.empty, cupy.ascontiguousarray = empty, lambda x: np.ascontiguousarray(x).view(Array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", cupy)
        spec.loader.exec_module(module)
    module.scratch = empty
    module.kernel = lambda source, name, dtype, *macros: Kernel(folder, loaded, name, source, dtype, macros)
    return module


def check(engine, q, k, v, g, S0, scale=1.0):
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v, g, S0) if x is not None))
    given = (None if x is None else x.view(Array) for x in (q, k, v, g, S0))
    o, S, _ = engine.linear_attention(*given, lead=lead, scale=scale, keep=False, workers=None)
    for row in np.ndindex(*lead):
        parts = [
            None if x is None else oracles.wide(np.broadcast_to(x, lead + x.shape[-2:])[row]) for x in (q, k, v, g, S0)
        ]
        want_o, want_S = loop(*parts)
        # What products take in is rounded: q, k v, the decayed products and the states.
        assert_close(o[row], scale * want_o, 4 * eps("bfloat16"), "o")
        assert_close(S[row], want_S, 2 * eps("bfloat16"), "S")


def loop(q, k, v, g, S):
    S = np.zeros((k.shape[-1], v.shape[-1])) if S is None else S
    o = np.empty_like(v)
    for t in range(len(q)):
        S = (1.0 if g is None else np.exp(g[t, 0])) * S + np.outer(k[t], v[t])
        o[t] = q[t] @ S
    return o, S


@pytest.mark.parametrize(("length", "keys", "values"), [(1, 1, 1), (150, 80, 70)])
def test_the_plain_loop(rng, engine, length, keys, values):
    q, k = (random(rng, (length, keys), DTYPE) for _ in range(2))
    v, S0 = random(rng, (length, values), DTYPE), random(rng, (keys, values), "float32")
    if length == 1:
        check(engine, q, k, v, None, None)
    g = np.log(rng.uniform(0.5, 1, (length, 1))).astype("float32")
    check(engine, q, k, v, g, S0, scale=0.5)


def test_strong_decays_and_steps_that_forget(rng, engine):
    q, k, v = (random(rng, (130, 16), DTYPE) for _ in range(3))
    S0 = random(rng, (16, 16), "float32")
    g = -rng.uniform(0, 60, (130, 1)).astype("float32")
    check(engine, q, k, v, g, S0)
    g[:] = -0.1
    g[[0, 5, 63, 64, 100]] = -np.inf
    check(engine, q, k, v, g, S0)


def test_heads_share_keys_where_they_lie(rng, engine):
    q, v = random(rng, (2, 3, 40, 8), DTYPE), random(rng, (2, 1, 40, 24), DTYPE)[..., ::3]
    k = random(rng, (40, 3, 8), DTYPE).swapaxes(0, 1)
    check(engine, q, k, v, -rng.uniform(0, 1, (3, 40, 1)).astype("float32"), None)


def test_segments_of_time(rng, engine, monkeypatch):
    monkeypatch.setattr(engine, "_WHOLE", 100)
    monkeypatch.setattr(engine, "_SEGMENT", 64)
    q, k, v = (random(rng, (2, 150, 16), DTYPE) for _ in range(3))
    g = -rng.uniform(0, 0.1, (2, 150, 1)).astype("float32")
    check(engine, q, k, v, g, random(rng, (16, 16), "float32"))
    g[1, 70] = -np.inf
    check(engine, q, k, v, g, random(rng, (2, 16, 16), "float32"))
