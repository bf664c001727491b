"""Tables in the documents, which stand between `<!-- results:NAME -->` and `<!-- /results -->` and are never typed."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .measuring import ROOT, read_results, results_folder


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Header and rows of cells in Markdown."""
    header = list(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


def place_note(where: dict[str, Any]) -> str:
    """The machine, versions and date of a measurement, for the line below its table."""
    policy = f"OMP_WAIT_POLICY {where['OMP_WAIT_POLICY']}" if "OMP_WAIT_POLICY" in where else ""
    versions = f"torch {where['torch']}, transformers {where['transformers']}"
    return ", ".join(filter(None, (where["device"], policy, versions, where["date"]))) + "."


def write_page(page: Path, blocks: dict[str, str]) -> None:
    """Replaces what lies between the marks that `blocks` names; everything else stays as it is."""
    text = page.read_text(encoding="utf-8")
    for mark, block in blocks.items():
        between = f"<!-- results:{mark} -->\n{block}\n<!-- /results -->"
        text, found = re.subn(
            rf"<!-- results:{mark} -->.*?<!-- /results -->", lambda _, b=between: b, text, flags=re.DOTALL
        )
        if found != 1:
            raise ValueError(
                f"{page.name} has {found} marks <!-- results:{mark} -->, and one is needed to write there."
            )
    page.write_text(text, encoding="utf-8")


def follow_results(out: Path, blocks: Callable[[dict], dict[str, str]]) -> list[Path]:
    """Writes docs/NAME.md, if `out` is NAME.json of the repository's own results; returns the pages written."""
    page = ROOT / "docs" / f"{out.stem}.md"
    if out.parent != results_folder() or not page.is_file():
        return []
    write_page(page, blocks(read_results(out)))
    return [page]
