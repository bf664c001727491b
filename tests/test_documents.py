"""What the documents quote stands in the results that a script wrote, and in the sources."""

import re
from pathlib import Path

import pytest

import hf_infeco
from hf_infeco.benchmarks import SUITES, load
from hf_infeco.benchmarks.documents import pages, with_block
from hf_infeco.benchmarks.measuring import read_results, results_folder

from .contract import families

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", SUITES)
def test_the_tables_of_all_pages_are_those_of_the_saved_results(name):
    shown = pages(load(name), read_results(results_folder() / f"{name}.json"))
    assert shown
    for page, text in shown.items():
        assert page.read_text() == text, f"{page.name}: hf-infeco bench {name} --parts ''"


def test_the_families_of_the_readme_are_those_of_the_contract():
    text = (ROOT / "README.md").read_text()
    assert with_block(text, "families", families.as_table()) == text


@pytest.mark.parametrize("page", ["s2o", "innerq", "static", "remix", "real"])
def test_a_page_quotes_one_short_table_and_one_picture(page):
    text = (DOCS / f"{page}.md").read_text()
    (table,) = re.findall(r"<!-- results:\w+ -->\n(.*?)\n<!-- /results -->", text, re.DOTALL)
    assert sum(line.startswith("|") for line in table.splitlines()) <= 2 + 8
    (picture,) = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert f"results/{page}.md" in text and (DOCS / picture).is_file()


@pytest.mark.parametrize("name", SUITES)
def test_every_picture_of_a_page_of_results_is_there_and_small(name):
    for picture in load(name).pictures:
        assert (DOCS / "results" / f"{name}_{picture}.svg").stat().st_size < 100_000


def test_a_page_without_the_mark_is_refused():
    page = "<!-- results:a -->\nold\n<!-- /results -->\n"
    assert with_block(page, "a", "new") == "<!-- results:a -->\nnew\n<!-- /results -->\n"
    with pytest.raises(ValueError, match="0 marks <!-- results:b -->"):
        with_block(page, "b", "new")


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_sources():
    """A message is looked up by its words: where it is written in several lines, one of them is quoted."""
    sources = "".join(path.read_text() for path in (ROOT / "hf_infeco").rglob("*.py"))
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"\*\*`(.+?)`\*\*", page)
    assert len(quoted) > 15
    assert not [words for words in quoted if words not in sources]


def test_the_api_page_names_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith((":::", "### "))}
    assert not set(hf_infeco.__all__) - listed
