"""Put the support table into README.md: ``make table``, after a row of linscan/engines/support.py changed."""

import re
from pathlib import Path

from linscan.engines import support

readme = Path(__file__).resolve().parent.parent / "README.md"
text = readme.read_text(encoding="utf-8")
section = f"<!-- support:begin -->\n{support.table()}\n<!-- support:end -->"
readme.write_text(
    re.sub(r"<!-- support:begin -->.*<!-- support:end -->", lambda _: section, text, flags=re.DOTALL), "utf-8"
)
