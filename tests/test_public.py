"""Every public name is documented, with an example that runs, and has its gradient or a reason not to."""

import inspect
import re
from pathlib import Path

import pytest

import linscan

API = Path(__file__).parent.parent / "docs" / "api"

# Public functions without a pullback, and why.
NO_GRADIENT = {
    "available": "asks about the machine",
    "block_step": "one step of block_scan; block_scan_vjp is its gradient too",
    "check_vjp": "checks gradients",
    "diagonal_init": "makes constants from integers",
    "hippo": "makes constants from integers",
    "nplr": "makes constants from integers",
    "rnn_step": "one step of rnn_scan; rnn_scan_vjp is its gradient too",
    "scan_trace": "draws an algorithm",
    "selective_step": "selective_scan of one step, whose gradient is selective_scan_vjp",
    "set_workers": "a context manager",
    "show_config": "asks about the machine",
    "undiscretize": "looks back at a finished system; its docstring says why",
    "use_engine": "a context manager",
    "window_groups": "makes an index; what it returns has the gradients of using it",
}


def functions():
    return [name for name in linscan.__all__ if not name.endswith("_vjp")]


@pytest.mark.parametrize("name", linscan.__all__)
def test_docstring_has_its_sections_and_an_example(name):
    text = inspect.getdoc(getattr(linscan, name))
    assert text.splitlines()[0].endswith(".") or text.split("\n\n")[0].endswith("."), "a summary that is a sentence"
    sections = set(re.findall(r"^(\w[\w ]*)\n-+$", text, re.MULTILINE))
    signature = inspect.signature(getattr(linscan, name))
    if signature.parameters:
        assert "Parameters" in sections
    assert "Examples" in sections
    assert ">>>" in text
    if name not in ("set_workers", "use_engine"):
        assert "Returns" in sections


@pytest.mark.parametrize("name", linscan.__all__)
def test_name_stands_on_one_api_page(name):
    pattern = re.compile(rf"^\.\. auto\w+:: linscan\.{name}$", re.MULTILINE)
    pages = [page.name for page in sorted(API.glob("*.md")) if pattern.search(page.read_text(encoding="utf-8"))]
    assert len(pages) == 1, pages


@pytest.mark.parametrize("name", functions())
def test_every_operation_has_a_gradient_or_a_reason(name):
    base = name.removesuffix("_step")
    assert (base + "_vjp" in linscan.__all__) != (name in NO_GRADIENT)


def test_no_stale_reasons():
    assert set(NO_GRADIENT) <= set(linscan.__all__)


@pytest.mark.parametrize("name", [name for name in linscan.__all__ if name.endswith("_vjp")])
def test_gradients_are_checked_by_a_test(name):
    texts = [p.read_text(encoding="utf-8") for p in Path(__file__).parent.rglob("test_*.py")]
    assert any("check_vjp(" in text and re.search(rf"\b{name}\b", text) for text in texts)
