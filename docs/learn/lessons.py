"""Run the lessons: each page's ``python`` blocks in order, in one namespace, in a folder of their own.

``python docs/learn/lessons.py`` writes their pictures to docs/learn/pictures, as the documentation build does. The
tests compare what each block prints with the ``text`` block below it.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PAGES = sorted(HERE.glob("[0-9]*.md"))
_BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    line: int
    code: str
    shown: str  # the text block that follows, or nothing
    printed: str


def run(page: Path, folder: Path) -> Iterator[Block]:
    """Run the page's python blocks inside `folder`, with a folder named pictures in it."""
    source = page.read_text(encoding="utf-8")
    blocks = [(m[1], m[2], source.count("\n", 0, m.start()) + 1) for m in _BLOCK.finditer(source)]
    names: dict[str, object] = {"__name__": page.stem}
    (folder / "pictures").mkdir(exist_ok=True)
    for (kind, code, line), (following, text, _) in zip(blocks, [*blocks[1:], ("", "", 0)], strict=True):
        if kind == "python":
            out = io.StringIO()
            program = compile("\n" * line + code, str(page), "exec")  # so that a traceback names the page's own line
            with contextlib.redirect_stdout(out), contextlib.chdir(folder):
                exec(program, names)
            yield Block(line, code, text if following == "text" else "", out.getvalue())


def main() -> None:
    """Write the pictures of every lesson."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    for page in PAGES:
        for _ in run(page, HERE):
            pass


if __name__ == "__main__":
    main()
