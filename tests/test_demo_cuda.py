"""The demo on a GPU: it goes there by itself, says so, and finds what the CPU finds."""

import numpy as np
import pytest

from linscan.demo import main

pytestmark = pytest.mark.gpu


def test_the_demo_uses_the_gpu_and_says_so(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "gpu")]) == 0
    assert "engine cuda, CuPy" in capsys.readouterr().out
    assert main(["--out", str(tmp_path / "cpu"), "--engine", "cpu", "--no-timing"]) == 0
    for name in ("ecg", "co2"):
        with np.load(tmp_path / "gpu" / f"{name}.npz") as ours, np.load(tmp_path / "cpu" / f"{name}.npz") as theirs:
            for key in ("filtered", "recalled", "kernel", "output"):
                scale = np.linalg.norm(theirs[key])
                assert np.linalg.norm(ours[key] - theirs[key]) <= 1e-9 * scale, key
