"""Sphinx configuration. Builds offline and with warnings as errors: ``make docs``."""

import re
import runpy
from pathlib import Path

import linscan
from linscan.engines import support

here = Path(__file__).parent
runpy.run_path(str(here / "learn" / "lessons.py"))["main"]()  # the lessons draw their own pictures


def pages() -> str:
    """Every page of the reference beside what stands on it, as a table."""
    rows = []
    for page in sorted((here / "api").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        names = re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE)
        if names:
            title = text.splitlines()[0].removeprefix("# ")
            rows.append(f"| [{title}]({page.name}) | " + ", ".join(f"{{py:obj}}`~{name}`" for name in names) + " |")
    return "\n".join(["| page | names |", "|---|---|", *rows])


project = "linscan"
author = "The linscan developers"
copyright = "the linscan developers"
version = release = linscan.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
exclude_patterns = ["_build"]
suppress_warnings = ["toc.empty_glob"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {"support": support.table(), "pages": pages()}

autodoc_typehints = "none"
autodoc_default_options = {"members": False}
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
nitpicky = False

html_theme = "alabaster"
html_title = f"linscan {release}"
html_theme_options = {
    "description": "Linear recurrences for NumPy and CuPy",
    "fixed_sidebar": True,
    "page_width": "72rem",
    "body_max_width": "52rem",
}
html_static_path: list[str] = []
