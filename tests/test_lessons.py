"""The lessons run as they stand and print what they show."""

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("matplotlib").use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")

LESSONS = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "learn" / "lessons.py"))
_ROUNDING = re.compile(r"\b\d(?:\.\d+)?e[+-]\d+\b")


def agree(printed, shown):
    """The same text, but numbers like 3e-07 are rounding errors, which differ between processors: within 30 times."""
    blank = [re.sub(r" +", " ", _ROUNDING.sub("#", text)).strip() for text in (printed, shown)]
    pairs = zip(_ROUNDING.findall(printed), _ROUNDING.findall(shown), strict=False)
    return blank[0] == blank[1] and all(close(float(x), float(y)) for x, y in pairs)


def close(x, y):
    return max(x, y) < 1e-12 or y / 30 <= x <= 30 * y


@pytest.mark.parametrize("page", LESSONS["PAGES"], ids=lambda page: page.stem)
def test_lesson(page, tmp_path):
    for block in LESSONS["run"](page, tmp_path):
        assert agree(block.printed, block.shown), f"{page.name}:{block.line} prints\n{block.printed}"
    pyplot.close("all")
    source = page.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 140
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", source)
    assert set(pictures) == {f"pictures/{path.name}" for path in (tmp_path / "pictures").iterdir()}


def test_there_are_lessons():
    assert len(LESSONS["PAGES"]) >= 3


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("off by 3e-07\n", "off by 1.2e-06\n", True),
        ("off by 3e-07\n", "off by 3e-04\n", False),
        ("0e+00", "7e-15", True),
        ("0e+00", "7e-05", False),
        ("2048 of them", "2047 of them", False),
        ("3e-07", "", False),
        ("a   1\n", "a 1\n", True),
    ],
)
def test_what_agrees(printed, shown, same):
    assert agree(printed, shown) is same
