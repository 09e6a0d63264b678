"""Compile every device source for every architecture we name: ``python compile_device_code.py NVCC``."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

nvcc = sys.argv[1]
folder = Path(__file__).resolve().parent.parent / "linscan" / "engines" / "cuda"
known = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
wanted = [75, 80, 90] + [100] * ("compute_100" in known)
failed = 0
with tempfile.TemporaryDirectory() as out:
    for source in sorted(folder.glob("*.cu")):
        for arch in wanted:
            begin = time.perf_counter()
            command = [nvcc, "-std=c++17", "-cubin", f"-arch=sm_{arch}", f"-I{folder}", "-Werror=all-warnings"]
            result = subprocess.run([*command, "-o", f"{out}/a.cubin", source], capture_output=True, text=True)
            verdict = "ok" if result.returncode == 0 else "FAILED"
            print(f"{source.name} sm_{arch}: {verdict}, {time.perf_counter() - begin:.1f} s")
            if result.returncode:
                failed += 1
                print(result.stdout + result.stderr)
sys.exit(bool(failed))
