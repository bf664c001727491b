"""The tables of docs/static.md, from the file of results and the evaluation of the bundled recommender."""

import json
from collections.abc import Callable

from ..documents import markdown_table, place_note
from ..measuring import ROOT
from .catalogues import LENGTH

EVALUATION = ROOT / "examples" / "models" / "catalog" / "evaluation.json"
DEPTHS = [f"depth {depth}" for depth in range(LENGTH)]


def step_table(part: dict) -> str:
    rows = [
        [f"{int(items):,}", *(f"{taken:.2f}" for taken in by_depth)]
        for items, by_depth in part["milliseconds_by_depth"].items()
    ]
    ratios = [f"{ratio:.2f}x" for ratio in part["slowest_to_fastest_catalogue_by_depth"]]
    return markdown_table(["items; ms at", *DEPTHS], [*rows, ["slowest over fastest", *ratios]])


def vocabulary_table(part: dict) -> str:
    rows = [
        [f"{int(size):,}", *(f"{taken:.2f}" for taken in by_depth)]
        for size, by_depth in part["milliseconds_by_vocabulary_and_depth"].items()
    ]
    return markdown_table([f"vocabulary, {part['vocabulary_items']:,} items; ms at", *DEPTHS], rows)


def wide_table(part: dict) -> str:
    rows = [
        [depth, f"{taken['processor']:.2f}", f"{taken['fill']:.2f}", f"{part['times_one_fill_by_depth'][depth]:.2f}x"]
        for depth, taken in part["milliseconds_by_depth"].items()
    ]
    return markdown_table(
        [f"{part['items']:,} items, depth", "processor, ms", "one fill, ms", "processor over fill"], rows
    )


def nodes_table(part: dict) -> str:
    rows = [
        [f"{int(size):,}", f"{taken['processor']:.2f}", f"{taken['fill']:.2f}", f"{part['times_one_fill'][size]:.2f}x"]
        for size, taken in part["milliseconds_by_vocabulary"].items()
    ]
    return markdown_table(
        [
            f"a node of {part['children']:,} children, vocabulary",
            "processor, ms",
            "one fill, ms",
            "processor over fill",
        ],
        rows,
    )


def catalogues_table(part: dict) -> str:
    rows = [
        [
            f"{name}: {entry['items']:,} items of up to {entry['length']} tokens out of {entry['vocabulary']:,}, "
            f"most children {entry['most_children']:,}",
            *(f"{taken:.2f}" for taken in entry["milliseconds_by_depth"]),
        ]
        for name, entry in part.items()
        if name != "where"
    ]
    return markdown_table(["ms at", *DEPTHS], rows)


def baselines_table(part: dict) -> str:
    """Milliseconds at each depth, with multiples of ours."""
    rows = []
    for name, by_depth in part["milliseconds_by_depth"].items():
        ratios = part["times_ours_by_depth"].get(name, [1] * LENGTH)
        rows.append([name, *(f"{taken:.2f} ({ratio:.3g}x)" for taken, ratio in zip(by_depth, ratios))])
    return markdown_table([f"{part['items']:,} items; ms (over ours) at", *DEPTHS], rows)


def search_table(part: dict) -> str:
    rows = [
        [name, f"{seconds:.2f}", f"{part['times_faster_than_unconstrained'][name]:.2f}x"]
        for name, seconds in part["seconds"].items()
    ]
    setting = f"{part['items']:,} items, a model of {part['model']['parameters'] / 1e6:.0f} M parameters"
    return markdown_table([setting, "seconds", "as fast as unconstrained"], rows)


def scores_table(part: dict) -> str:
    row = ["yes" if part["same_sequences"] else "no", f"{part['largest_score_difference']:.1e}"]
    row.append(f"{part['largest_relative_score_difference']:.1e}")
    return markdown_table(["same sequences, in order", "scores differ by at most", "relatively"], [row])


def build_table(part: dict) -> str:
    row = [f"{part['items']:,}", f"{part['build_seconds']:.2f}"]
    row += [f"{part['peak_megabytes']:,}", f"{part['peak_megabytes_before']:,}", f"{part['bytes_per_sequence']:.2f}"]
    row += [f"{part['save_seconds']:.2f}", f"{part['file_megabytes']:.1f}"]
    row += [f"{1e3 * part['load_seconds']:.1f}", f"{1e3 * part['first_step_seconds']:.0f}"]
    memory = ["peak, MB", "before, MB", "bytes an item"]
    return markdown_table(["items", "build, s", *memory, "save, s", "file, MB", "load, ms", "first step, ms"], [row])


def validity_table(part: dict) -> str:
    row = [f"{part[name]:,}" for name in ("catalogues", "beams", "members", "same_as_transformers")]
    return markdown_table(["catalogues", "beams", "members of the catalogue", "as with transformers' own"], [row])


def recommender_table(evaluation: dict) -> str:
    recall, fresh = evaluation["recall_at_10"], evaluation["cold_recall_at_10"]
    invalid = evaluation["invalid_unconstrained"]["rate"]
    random, random_fresh = evaluation["random_recall_at_10"], evaluation["random_recall_at_10_among_fresh"]
    rows = {
        "unconstrained": [recall["unconstrained"]["rate"], fresh["unconstrained"]["rate"], invalid],
        "in the catalogue": [recall["constrained"]["rate"], fresh["constrained"]["rate"], None],
        "among fresh items": [None, fresh["fresh_only"]["rate"], None],
        "ten random items, of all or of the fresh": [random, random_fresh, None],
    }
    header = [
        f"{recall['constrained']['total']:,} users",
        "recall@10",
        "recall@10 of fresh items",
        "not in the catalogue",
    ]
    return markdown_table(
        header,
        [[name, *("" if rate is None else f"{100 * rate:.2f} %" for rate in rates)] for name, rates in rows.items()],
    )


# Name of the mark: the part of the results that it shows, and how.
TABLES: dict[str, tuple[str, Callable[[dict], str]]] = {
    "step": ("step", step_table),
    "vocabulary": ("step", vocabulary_table),
    "wide": ("wide", wide_table),
    "nodes": ("nodes", nodes_table),
    "catalogues": ("catalogues", catalogues_table),
    "baselines": ("baselines", baselines_table),
    "search": ("search", search_table),
    "scores": ("search", scores_table),
    "build": ("build", build_table),
    "validity": ("validity", validity_table),
}


def blocks(results: dict) -> dict[str, str]:
    """Name of the mark in the document: its table, with a note for each part that was measured."""
    tables = {
        mark: f"{draw(results[part])}\n\n{place_note(results[part]['where'])}"
        for mark, (part, draw) in TABLES.items()
        if part in results
    }
    return tables | {"recommender": recommender_table(json.loads(EVALUATION.read_text()))}
