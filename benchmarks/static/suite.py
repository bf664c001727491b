"""The STATIC benchmark: its parts, and how much of each is measured."""

from dataclasses import dataclass

from ..suite import Suite
from .baselines import compare_baselines
from .build import measure_build
from .plots import calls
from .report import QUOTES, TABLES
from .search import measure_search
from .shapes import measure_catalogues, measure_nodes
from .step import measure_step, measure_wide
from .validity import count_valid


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

SUITE = Suite(
    name="static",
    title="STATIC",
    parts={
        "step": lambda run, extent: measure_step(extent.step_items, extent.items, extent.beams, extent.repeats),
        "wide": lambda run, extent: measure_wide(extent.items, extent.beams, extent.repeats),
        "nodes": lambda run, extent: measure_nodes(extent.children, extent.vocabularies, extent.beams, extent.repeats),
        "catalogues": lambda run, extent: measure_catalogues(
            extent.items, extent.titles, extent.beams, extent.repeats
        ),
        "baselines": lambda run, extent: compare_baselines(extent.items, extent.beams, extent.repeats),
        "search": lambda run, extent: measure_search(extent.items, extent.beams),
        "build": lambda run, extent: measure_build(extent.build_items),
        "validity": lambda run, extent: count_valid(extent.catalogues, extent.beams),
    },
    full=Extent(),
    quick=QUICK,
    tables=TABLES,
    quotes=QUOTES,
    pictures={"calls": ("baselines", calls)},
)
