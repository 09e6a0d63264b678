"""Compile every device source, as it stands, for every architecture we name: ``python compile_device_code.py NVCC``."""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

nvcc = sys.argv[1]
folder = Path(__file__).resolve().parent.parent / "linscan" / "engines" / "cuda"
known = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
archs = [75, 80, 90] + [100] * ("compute_100" in known)


def compile_one(source: Path, arch: int, cubin: str) -> bool:
    begin = time.perf_counter()
    command = [nvcc, "-std=c++17", "-cubin", f"-arch=sm_{arch}", f"-I{folder}", "-o", cubin, str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    verdict = "ok" if result.returncode == 0 else f"FAILED\n{result.stdout}{result.stderr}"
    print(f"{source.name} sm_{arch}: {time.perf_counter() - begin:.1f} s, {verdict}")
    return result.returncode == 0


with tempfile.TemporaryDirectory() as out, ThreadPoolExecutor(os.cpu_count()) as pool:
    work = [(source, arch) for source in sorted(folder.glob("*.cu")) for arch in archs]
    jobs = [pool.submit(compile_one, *item, f"{out}/{i}.cubin") for i, item in enumerate(work)]
    sys.exit(not all([job.result() for job in jobs]))
