"""Every example runs, prints what it says and is short; what it prints is checked where it is a number."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

# For each example: a pattern, and the least and greatest that each number it finds may be.
LIMITS = {
    "baseline_removal": [
        (r"before: (\S+) mV", 0.2, 0.5),
        (r"after: (\S+) mV", 0.0, 0.02),  # the wander is gone
        (r"(\S+) of the norm", 0.0, 1e-11),
        (r"(\S+) mV away", 0.0, 1e-11),
    ],
    "streaming_filter": [
        (r"one call: (\S+) mV", 0.0, 1e-13),
        (r"one scan: (\S+) mV", 0.0, 1e-13),
        (r"(\d+) beats", 100, 100),
    ],
    "co2_memory": [
        (r" 64 numbers:\s+(\S+) ppm", 1.5, 2.1),  # too few for forty-four yearly cycles
        (r"256 numbers:\s+(\S+) ppm", 0.0, 0.6),  # enough
        (r"of them: (\S+) ppm", 0.0, 0.6),
    ],
    "s4d_three_ways": [(r"(\S+) of the norm", 0.0, 2e-6)],
    "stream_model": [
        (r"ahead: (\S+);", 0.0, 0.45),  # it has learnt something
        (r"present: (\S+)", 0.5, 1.0),
        (r"(\S+) of the norm", 0.0, 5e-6),
    ],
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, capsys):
    assert len(path.read_text("utf-8").splitlines()) <= 80
    runpy.run_path(str(path), run_name="__main__")
    text = capsys.readouterr().out
    for pattern, least, greatest in LIMITS[path.stem]:
        found = [float(x) for x in re.findall(pattern, text)]
        assert found, f"{pattern!r} is not in:\n{text}"
        assert all(least <= x <= greatest for x in found), f"{pattern!r} found {found} in:\n{text}"
