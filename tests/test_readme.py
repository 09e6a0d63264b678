"""What the README says is so: its code prints what it shows, its table is the table, its links lead somewhere."""

import doctest
import re
from pathlib import Path

import pytest

from linscan.engines import support

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tour_runs_and_prints_what_it_shows():
    (tour,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert 20 <= len([line for line in tour.splitlines() if line.startswith((">>>", "..."))]) <= 25
    example = doctest.DocTestParser().get_doctest(tour, {}, "README.md", "README.md", 0)
    report = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert result.attempted > 15
    assert result.failed == 0, "".join(report)


def test_the_support_table_is_the_one_that_dispatch_reads():
    shown = README.split("<!-- support:begin -->\n")[1].split("\n<!-- support:end -->")[0]
    assert shown == support.table(), f"the table in README.md should now be\n{support.table()}"


def test_the_two_commands_are_make_targets():
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", commands, re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in [*targets, *re.findall(r"`make (\w+)`", README)]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_pictures_exist(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []
