"""How device code is compiled: by NVRTC at first use, one variant at a time, kept in CuPy's cache on disk.

Headers are pasted into the source, because that cache looks at the source alone: with ``-I`` a changed header would go
unnoticed. Variants (dtype, direction, sizes) are macros in front of it.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

# Multiply-adds are written out in the sources: variants of one kernel must give the same bits.
OPTIONS = ("-std=c++17", "-fmad=false")
_TYPES = {"float32": "float", "float64": "double"}  # the others have the dtype's name


@cache
def kernel(source: str, name: str, dtype: str, *macros: tuple[str, int]) -> Any:
    """The kernel `name` of the file `source` for arrays of `dtype`; each device compiles it at its first run."""
    import cupy

    return cupy.RawKernel(text(source, dtype, *macros), name, OPTIONS)


def by_value(struct: Any) -> Any:
    """An array of one struct as launches take it, its address asked for once: CuPy asks at each, which is slow."""
    import cupy

    return cupy.cuda.function.CNumpyArray(struct.view(f"V{struct.dtype.itemsize}"))


def text(source: str, dtype: str, *macros: tuple[str, int]) -> str:
    """What is compiled: the macros, then the file with every header it includes, each once."""
    defines = [("STORAGE", _TYPES.get(dtype, dtype)), *macros]
    return "".join(f"#define {key} {value}\n" for key, value in defines) + paste(source)


def paste(source: str, seen: set[str] | None = None) -> str:
    """The file with every header it includes, those in `seen` left out, which grows."""
    seen = set() if seen is None else seen
    seen.add(source)
    code = (Path(__file__).parent / source).read_text(encoding="utf-8")

    def header(match: Any) -> str:
        return "" if match[1] in seen else paste(match[1], seen)

    return re.sub(r'^#include "(.+)"\n', header, code.replace("#pragma once\n", ""), flags=re.MULTILINE)


def shared_limit(x: Any) -> int:
    """Bytes of shared memory the GPU of `x` gives a block that asks for them."""
    return _shared_limit(x.device.id)


@cache
def _shared_limit(device: int) -> int:
    import cupy

    return cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]
