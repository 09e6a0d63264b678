"""The page of results is what its stored runs make it, and a run can be put there."""

import json

import pytest

from benchmarks import results
from linscan.train import __main__ as command


def test_the_page_is_written_from_what_is_stored():
    text = results.PAGE.read_text(encoding="utf-8")
    between = text.split("<!-- runs:begin -->\n")[1].split("\n<!-- runs:end -->")[0]
    assert between == results.page(results.PAGE.with_suffix("")), "run: make results"


def test_a_run_is_stored_with_its_log_and_told_in_the_table(tmp_path):
    pytest.importorskip("matplotlib")
    assert command.main(["copy", "--steps", "2", "--size", "tiny", "--batch", "3", "--out", str(tmp_path / "run")]) == 0
    assert b"Copy(size=3," in (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    store = tmp_path / "results"
    results.collect(tmp_path / "run", store)
    stored = json.loads((store / "run.json").read_text())
    assert stored["command"] == "python -m linscan train copy --model lru --size tiny --steps 2 --seed 0 --batch 3"
    assert stored["log"][-1]["step"] == 2
    text = results.page(store)
    accuracy = 100 * stored["log"][-1]["test_accuracy"]
    assert f"| [run](#run) | {accuracy:.1f} % | 100 % | 2 | " in text
    assert "(results/run.png)" in text
    stored["log"].append(dict(stored["log"][-1], step=5.0, test_accuracy=1.0))
    assert results.result(stored) == "100.0 % (≥ 100 % from step 5)"
    text = dict(stored, task="text", remarks={"bits per character": 1.5, "sample": "to be"})
    assert results.result(text) == "bits per character: 1.5"
    ended = dict(stored, task="listops", final={"test_accuracy": 0.625})
    assert results.result(ended) == "62.5 % (validation 100.0 %)"
