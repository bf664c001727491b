"""What the documents quote stands in the results that a script wrote."""

import json
import re
from pathlib import Path

import pytest

import hf_infeco
from hf_infeco.benchmarks import foundation
from hf_infeco.benchmarks.documents import write_page
from hf_infeco.benchmarks.innerq import report as innerq_report
from hf_infeco.benchmarks.real import report as real_report
from hf_infeco.benchmarks.s2o import report as s2o_report
from hf_infeco.benchmarks.static import report as static_report

from .contract import families

ROOT = Path(__file__).parents[1]


def results(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


PAGES = {
    "README.md": lambda: {
        "foundation": foundation.as_table(results("foundation")),
        "real": real_report.readme_block(results("real")),
        "families": families.as_table(),
    },
    "docs/innerq.md": lambda: innerq_report.blocks(results("innerq")),
    "docs/real.md": lambda: real_report.blocks(results("real")),
    "docs/s2o.md": lambda: s2o_report.blocks(results("s2o")),
    "docs/static.md": lambda: static_report.blocks(results("static")),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_a_page_are_those_of_the_saved_results(page, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text((ROOT / page).read_text())
    write_page(copy, PAGES[page]())
    assert copy.read_text() == (ROOT / page).read_text()


def test_a_page_without_the_mark_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- results:a -->\nold\n<!-- /results -->\n")
    write_page(page, {"a": "new"})
    assert page.read_text() == "<!-- results:a -->\nnew\n<!-- /results -->\n"
    with pytest.raises(ValueError, match="0 marks <!-- results:b -->"):
        write_page(page, {"b": "new"})


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_sources():
    """A message is looked up by its words: where it is written in several lines, one of them is quoted."""
    sources = "".join(path.read_text() for path in (ROOT / "hf_infeco").rglob("*.py"))
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"\*\*`(.+?)`\*\*", page)
    assert len(quoted) > 15
    assert not [words for words in quoted if words not in sources]


def test_the_api_page_names_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith(":::")}
    assert not set(hf_infeco.__all__) - listed
