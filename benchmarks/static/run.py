"""All parts of the STATIC benchmark, each of which replaces its entry in one JSON file."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..documents import follow_results
from ..measuring import check_parts, results_file, where, write_part
from .baselines import compare_baselines
from .build import measure_build
from .report import blocks
from .search import measure_search
from .shapes import measure_catalogues, measure_nodes
from .step import measure_step, measure_wide
from .validity import count_valid

PARTS = ("step", "wide", "nodes", "catalogues", "baselines", "search", "build", "validity")


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    step_items: tuple[int, ...] = (10**5, 10**6, 10**7)  # of the catalogues that are compared in the step part
    items: int = 10**6  # of the catalogue of every other part, but
    build_items: int = 10**7
    beams: int = 70  # for each prompt
    repeats: int = 20  # of a call, each with other rows
    catalogues: int = 100  # small ones, in the validity part
    children: int = 20_000  # of the node in the nodes part
    vocabularies: tuple[int, ...] = (32_768, 131_072, 262_144)  # of the nodes part
    titles: int = 20_000


FULL = Extent()
QUICK = Extent(
    step_items=(1000, 10_000),
    items=1000,
    build_items=10_000,
    beams=3,
    repeats=2,
    catalogues=4,
    children=200,
    vocabularies=(512, 2048),
    titles=300,
)


def run(parts: Collection[str] = PARTS, extent: Extent = FULL, out: Path | None = None) -> list[Path]:
    """
    Measure `parts` and write each to `out` as soon as it is done; the other entries of the file stay. The tables of
    docs/static.md follow the repository's own file.

    Args:
        parts: names out of `PARTS`.
        extent: how much is measured; `QUICK` takes less than a minute and shows no more than that everything runs.
        out: the file, by default `static.json` in `measuring.results_folder()`, or if not all is measured that `FULL`
            measures, in the folder for temporary files.

    Returns:
        The files written.

    Raises:
        ValueError: a part that is none.
    """
    check_parts(parts, PARTS)
    out = out or results_file("static", extent == FULL)
    measure = {
        "step": lambda: measure_step(extent.step_items, extent.items, extent.beams, extent.repeats),
        "wide": lambda: measure_wide(extent.items, extent.beams, extent.repeats),
        "nodes": lambda: measure_nodes(extent.children, extent.vocabularies, extent.beams, extent.repeats),
        "catalogues": lambda: measure_catalogues(extent.items, extent.titles, extent.beams, extent.repeats),
        "baselines": lambda: compare_baselines(extent.items, extent.beams, extent.repeats),
        "search": lambda: measure_search(extent.items, extent.beams),
        "build": lambda: measure_build(extent.build_items),
        "validity": lambda: count_valid(extent.catalogues, extent.beams),
    }
    for part in parts:
        write_part(out, part, {"where": where("cpu"), **measure[part]()})
    return [out, *follow_results(out, blocks)]
