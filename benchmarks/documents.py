"""Tables in documents: whole pages of results, and those between `<!-- results:NAME -->` and `<!-- /results -->`."""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measuring import ROOT, read_results, results_folder

if TYPE_CHECKING:
    from .suite import Suite


@dataclass(frozen=True)
class Table:
    """
    A table of results.

    Args:
        title: its heading.
        parts: those it shows, whose entries `draw` takes, or the whole part where it has none.
        draw: makes the table. Its docstring stands above the table on the page of results.
    """

    title: str
    parts: tuple[str, ...]
    draw: Callable[..., str]

    def block(self, results: dict[str, Any]) -> str | None:
        """The table, and where its parts were measured; None if one of them was not."""
        if not results.keys() >= set(self.parts):
            return None
        shown = [results[part] for part in self.parts]
        notes = dict.fromkeys(place_note(part["where"]) for part in shown)
        return "\n\n".join([self.draw(*(part.get("entries", part) for part in shown)), *notes])


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Header and rows of cells in Markdown."""
    header = list(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


def entries_table(columns: dict[str, str], entries: Iterable[dict[str, Any]]) -> str:
    """A row per entry and a column per heading, which says how the entry's cell is formatted."""
    rows = [[re.sub(r"(?<=\d)%", " %", cell.format_map(entry)) for cell in columns.values()] for entry in entries]
    return markdown_table(columns, rows)


def place_note(where: dict[str, Any]) -> str:
    """Model, machine, versions and date of a measurement, for the line below its table."""
    policy = f"OMP_WAIT_POLICY {where['OMP_WAIT_POLICY']}" if "OMP_WAIT_POLICY" in where else ""
    versions = f"torch {where['torch']}, transformers {where['transformers']}"
    note = ", ".join(filter(None, (where["device"], policy, versions, where["date"]))) + "."
    model = f"{where['model']}; " if "model" in where else ""
    load = f" Load average when it began: {where['load']}." if "load" in where else ""
    return model + note + load


def results_page(suite: "Suite", results: dict[str, Any]) -> str:
    """All tables of a suite, each below what its function says of it, and the pictures that were drawn."""
    source = f"`hf-infeco bench {suite.name} --plot` writes this page from `benchmarks/results/{suite.name}.json`."
    lines = [f"# {suite.title}: results", f"{source} Times are of one machine: read the ratios."]
    for table in suite.tables:
        if block := table.block(results):
            lines += [f"## {table.title}", inspect.getdoc(table.draw) or "", block]
    for name, (part, draw) in suite.pictures.items():
        if part in results:
            lines += [inspect.getdoc(draw) or "", f"![{name}]({suite.name}_{name}.svg)"]
    return "\n\n".join(lines) + "\n"


def with_block(text: str, mark: str, block: str) -> str:
    """Replaces what lies between the marks of that name; everything else stays as it is."""
    between = f"<!-- results:{mark} -->\n{block}\n<!-- /results -->"
    text, found = re.subn(rf"<!-- results:{mark} -->.*?<!-- /results -->", lambda _: between, text, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"The page has {found} marks <!-- results:{mark} -->, and one is needed to write there.")
    return text


def pages(suite: "Suite", results: dict[str, Any]) -> dict[Path, str]:
    """Every page that shows results of the suite, with its text."""
    quoted = {ROOT / page: table.block(results) for page, table in suite.quotes.items()}
    texts = {page: with_block(page.read_text("utf-8"), suite.name, block) for page, block in quoted.items() if block}
    if suite.tables:
        texts[ROOT / "docs" / "results" / f"{suite.name}.md"] = results_page(suite, results)
    return texts


def pages_folder(suite: "Suite", out: Path) -> Path | None:
    """Where the page of results lies, if `out` is the repository's own file of results."""
    folder = ROOT / "docs" / "results"
    return folder if out == results_folder() / f"{suite.name}.json" and folder.is_dir() else None


def write_pages(suite: "Suite", out: Path) -> list[Path]:
    """Has the pages follow `out`, if it is the repository's own file of results; returns those written."""
    texts = pages(suite, read_results(out)) if pages_folder(suite, out) else {}
    for page, text in texts.items():
        page.write_text(text, "utf-8")
    return list(texts)
