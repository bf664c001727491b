"""What the documents quote stands in the results that a script wrote."""

import re
from pathlib import Path

import pytest

from hf_infeco.benchmarks import SUITES, load
from hf_infeco.benchmarks.documents import pages, with_block
from hf_infeco.benchmarks.measuring import read_results, results_folder

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", SUITES)
def test_the_tables_of_all_pages_are_those_of_the_saved_results(name):
    shown = pages(load(name), read_results(results_folder() / f"{name}.json"))
    assert shown
    for page, text in shown.items():
        assert page.read_text() == text, f"{page.name}: hf-infeco bench {name} --parts ''"


@pytest.mark.parametrize("page", ["s2o", "innerq", "static", "real"])
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
