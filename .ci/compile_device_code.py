"""Compile every device source for every architecture we name: ``python compile_device_code.py NVCC [LIBNVRTC]``.

For sm_90 it is told what is kept in memory for want of registers; of float32 variants no more than a few words may be.
With NVRTC's library also once as a user's machine does: it has no headers, and defaults of its own. No GPU is needed.
A source is compiled in variants that macros choose. One that does not name a variant of its own (``#ifndef STORAGE``)
gets those of the scans, with all switches off and all on.
"""

import ctypes
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from linscan.engines.cuda import _load

nvcc = sys.argv[1]
folder = Path(__file__).resolve().parent.parent / "linscan" / "engines" / "cuda"
known = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
archs = [75, 80, 90] + [100] * ("compute_100" in known)
sizes = {"REVERSED": 0, "ROWS": 2, "CHUNK": 4, "WARPS": 8, "GROUP": 4, "BLOCKS": 2, "STEPS": 8}
scans = [
    {"STORAGE": dtype, **sizes, "PULLBACK": on, "SPLIT": on, "RESETS": on, "SUMMED": on, "BOTH": on}
    for dtype, on in [("float", 0), ("complex128", 1)]
]
SPILT = 128  # bytes of a float32 variant; more is a mistake in its tiles


def variants(source: Path) -> list[dict[str, object]]:
    text = source.read_text(encoding="utf-8")
    return scans if "STORAGE" in text and "#ifndef STORAGE" not in text else [{}]


def compile_one(source: Path, arch: int, macros: dict[str, object], cubin: str) -> bool:
    begin = time.perf_counter()
    defines = [f"-D{name}={value}" for name, value in macros.items()]
    command = [nvcc, "-std=c++17", "-cubin", f"-arch=sm_{arch}", "-Xptxas=-v", f"-I{folder}", *defines]
    result = subprocess.run([*command, "-o", cubin, str(source)], capture_output=True, text=True)
    spilt = sum(map(int, re.findall(r"(\d+) bytes spill stores", result.stderr))) if arch == 90 else 0
    single = macros.get("STORAGE") == "float" or "#define STORAGE float\n" in source.read_text(encoding="utf-8")
    failed = result.returncode or (single and spilt > SPILT)
    verdict = f"FAILED\n{result.stdout}{result.stderr}" if failed else "ok"
    print(f"{source.name} sm_{arch}: {time.perf_counter() - begin:.1f} s, {spilt} bytes spilt, {verdict}")
    return not failed


def compile_at_run_time(nvrtc: ctypes.CDLL, source: Path, macros: dict[str, object]) -> bool:
    begin, added = time.perf_counter(), ("-arch=compute_90", "-ftz=true", "-default-device")  # by CuPy, about
    code = "".join(f"#define {name} {value}\n" for name, value in macros.items()) + _load.paste(source.name)
    options = [option.encode() for option in (*_load.OPTIONS, *added)]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), source.name.encode(), 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    verdict = f"FAILED\n{log.value.decode()}" if failed else "ok"
    print(f"{source.name} NVRTC: {time.perf_counter() - begin:.1f} s, {verdict}")
    return not failed


with tempfile.TemporaryDirectory() as out, ThreadPoolExecutor(os.cpu_count()) as pool:
    work = [(s, arch, macros) for s in sorted(folder.glob("*.cu")) for arch in archs for macros in variants(s)]
    jobs = [pool.submit(compile_one, *item, f"{out}/{i}.cubin") for i, item in enumerate(work)]
    if len(sys.argv) > 2:
        library = ctypes.CDLL(sys.argv[2])
        jobs += [pool.submit(compile_at_run_time, library, s, macros) for s, arch, macros in work if arch == 90]
    sys.exit(not all([job.result() for job in jobs]))
