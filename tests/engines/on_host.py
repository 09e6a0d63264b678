"""Device code on the host: compiled by g++ with an emulation of CUDA, its launchers on NumPy in the place of CuPy.

Grids, strides and sizes are those of a card, since the launchers run as they are.
"""

import atexit
import ctypes
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
import types
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from linscan.engines import cuda
from linscan.engines.cuda import _load

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

COMPILER = ("g++", "-std=c++20", "-O0", "-w", "-ffp-contract=off", "-fPIC")
SHARED = 227 << 10  # bytes of memory a block can have, as on Hopper
GLUE = """
#include <utility>
template <class... A, size_t... I> void call(void (*kernel)(A...), void** a, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(a[I])...);
}
template <class... A> void call(void (*kernel)(A...), void** a) { call(kernel, a, std::index_sequence_for<A...>()); }
"""


@cache
def headers():
    """A folder with the emulation's headers, the larger of them compiled: it takes longer than most kernels."""
    folder = Path(tempfile.mkdtemp(prefix="linscan-headers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("cuda_on_cpu.h", "mma_on_cpu.h"):
        shutil.copy(Path(__file__).with_name(name), folder)
    subprocess.run([*COMPILER, "-x", "c++-header", str(folder / "cuda_on_cpu.h")], check=True)
    return folder


def output(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def library(place, code, *options):
    """The device code compiled for the host at `place`, with a function ``on_cpu_<name>`` for each of its kernels."""
    seen = output([*COMPILER, "-E", "-P", "-D__launch_bounds__(...)=", "-x", "c++", "-"], input=code)
    primitives = _load.paste("mma.cuh", {"numbers.cuh"}).strip()
    code = code.replace(primitives, '#include "mma_on_cpu.h"\n')
    code = code.replace("extern __shared__ __align__(16) u8 memory[]", f"alignas(16) static u8 memory[{SHARED}]")
    code = '#include "cuda_on_cpu.h"\n' + code + GLUE
    for name in re.findall(r"__global__ void\s+(\w+)\(", seen):
        code += f'extern "C" void on_cpu_{name}(long long blocks, long long threads, void** a) {{\n'
        code += f"  launch(blocks, threads, [=] {{ call({name}, a); }});\n}}\n"
    place.write_text(code)
    output([*COMPILER, *options, "-shared", f"-I{headers()}", "-o", str(place.with_suffix(".so")), str(place)])
    return ctypes.CDLL(str(place.with_suffix(".so")))


def launch(function, grid, threads, arguments):
    """Run one of a library's functions as a launcher would its kernel."""
    values = [_value(x) for x in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
    function(ctypes.c_longlong(grid[0]), ctypes.c_longlong(threads[0]), pointers)


def _value(x):
    """The memory a kernel's argument is passed in: an address, a number, or a struct."""
    if x is None:
        return np.zeros(1, np.uint64)
    if isinstance(x, np.ndarray) and x.dtype.type is np.void:
        return x
    if isinstance(x, float | np.floating):
        return np.array([x])
    return np.array([x.__array_interface__["data"][0] if isinstance(x, np.ndarray) else x], np.int64)


class Array(np.ndarray):
    """A NumPy array with what the launchers ask of a CuPy one."""

    @property
    def device(self):
        device = nullcontext()
        device.compute_capability = "90"
        return device

    @property
    def data(self):
        def fill(value, size):
            self.view(np.ndarray).view(np.uint8)[:size] = value

        return types.SimpleNamespace(ptr=self.__array_interface__["data"][0], device_id=0, memset_async=fill)


def empty(shape, dtype=np.float64):
    """Poisoned: an output that is not written shows."""
    x = np.empty(shape, dtype).view(Array)
    if x.size:
        x.view(np.uint8).fill(0xFF)
    return x


def stand_in():
    """NumPy in the place of CuPy, as far as launchers ask for it: what they make is an `Array`."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.empty, cupy.nan = Array, empty, np.nan
    cupy.empty_like = lambda x: empty(x.shape, x.dtype)
    for make in (np.array, np.asarray, np.ascontiguousarray, np.eye, np.ones, np.zeros):
        setattr(cupy, make.__name__, partial(lambda make, *args, **options: make(*args, **options).view(Array), make))
    for function in (np.concatenate, np.cumsum, np.exp, np.isfinite, np.moveaxis, np.where):
        setattr(cupy, function.__name__, function)
    cupy.broadcast_to = partial(np.broadcast_to, subok=True)
    device = nullcontext()
    device.attributes = {"MaxSharedMemoryPerBlockOptin": SHARED}
    runtime = types.SimpleNamespace(getDevice=lambda: 0, streamIsCapturing=lambda stream: False)
    stream = types.SimpleNamespace(ptr=0)
    cupy.cuda = types.SimpleNamespace(Device=lambda *_: device, runtime=runtime, get_current_stream=lambda: stream)
    return cupy


class Kernel:
    """One variant of a source, compiled when one of its kernels first runs."""

    max_dynamic_shared_size_bytes = SHARED

    def __init__(self, folder, loaded, name, *key):
        self.folder, self.loaded, self.name, self.key = folder, loaded, name, key

    def __call__(self, grid, threads, arguments, shared_mem=0):
        if self.key not in self.loaded:
            source, dtype, macros = self.key
            code = _load.text(source, dtype, *macros)
            self.loaded[self.key] = library(self.folder / f"{len(self.loaded)}.cpp", code)
        launch(getattr(self.loaded[self.key], f"on_cpu_{self.name}"), grid, threads, arguments)


def load(folder, *names):
    """The launchers of these names and all they import, afresh; their kernels are compiled into `folder`."""
    loaded, prefix, own = {}, f"{cuda.__name__}.", ("_load", "chunks")  # without CuPy, and patched by tests
    here = [name for name in sys.modules if name.startswith(prefix) and name.removeprefix(prefix) not in own]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", stand_in())
        patch.setattr(_load, "shared_limit", lambda x: SHARED)
        patch.setattr(_load, "kernel", lambda source, name, *key: Kernel(folder, loaded, name, source, key[0], key[1:]))
        for name in here:
            patch.delitem(sys.modules, name)
            patch.delattr(cuda, name.removeprefix(prefix), raising=False)
        modules = [importlib.import_module(prefix + name) for name in names]
        for name in [name for name in sys.modules if name.startswith(prefix)]:
            if name.removeprefix(prefix) not in own:
                del sys.modules[name]
                delattr(cuda, name.removeprefix(prefix))
    return modules
