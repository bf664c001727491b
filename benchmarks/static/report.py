"""The tables of STATIC, from the file of results and the evaluation of the bundled recommender."""

import json
from collections.abc import Iterable

from ..documents import Table, entries_table, markdown_table
from ..measuring import ROOT
from .catalogues import LENGTH

EVALUATION = ROOT / "examples" / "models" / "catalog" / "evaluation.json"
DEPTHS = [f"depth {depth}" for depth in range(LENGTH)]


def step_table(part: dict) -> str:
    """
    A call of the processor at each depth. Items are random, 8 tokens each and 2,048 on each level; a call is for 140
    rows (2 prompts of 70 beams), others in every call.
    """
    ratios = [f"{ratio:.2f}x" for ratio in part["slowest_to_fastest_catalogue_by_depth"]]
    return _by_depth("items; ms at", part["milliseconds_by_depth"], ["slowest over fastest", *ratios])


def vocabulary_table(part: dict) -> str:
    """All of the vocabulary is on each level."""
    first = f"vocabulary, {part['vocabulary_items']:,} items; ms at"
    return _by_depth(first, part["milliseconds_by_vocabulary_and_depth"])


def wide_table(part: dict) -> str:
    """Beside one fill of the same scores in place, in a vocabulary of 151,936. A fill runs on one core."""
    times = part["milliseconds_by_depth"].items()
    return _beside_fill(f"{part['items']:,} items, depth", times, part["times_one_fill_by_depth"])


def nodes_table(part: dict) -> str:
    """Every one of 140 rows stands at a node with this many children, at depth 2."""
    times = part["milliseconds_by_vocabulary"].items()
    return _beside_fill(f"a node of {part['children']:,} children, vocabulary", times, part["times_one_fill"])


def catalogues_table(part: dict) -> str:
    """
    *Zipf*: the r-th token of a level is drawn as often as 1/r. *Titles*: invented ones of two to six words, tokenized
    by the bundled model's tokenizer, with their end token.
    """
    about = "{0}: {items:,} items of up to {length} tokens out of {vocabulary:,}, most children {most_children:,}"
    named = {about.format(name, **entry): entry for name, entry in part.items() if name != "where"}
    return _by_depth("ms at", {name: entry["milliseconds_by_depth"] for name, entry in named.items()})


def baselines_table(part: dict) -> str:
    """
    *sorted array* is exact prefix verification, by binary search for every token; *dict* and *marisa-trie* are
    transformers' `PrefixConstrainedLogitsProcessor` over nested dicts and over marisa-trie, which is measured where it
    is installed.
    """
    rows = []
    for name, by_depth in part["milliseconds_by_depth"].items():
        ratios = part["times_ours_by_depth"].get(name, [1] * LENGTH)
        rows.append([name, *(f"{taken:.2f} ({ratio:.3g}x)" for taken, ratio in zip(by_depth, ratios))])
    return markdown_table([f"{part['items']:,} items; ms (over ours) at", *DEPTHS], rows)


def search_table(part: dict) -> str:
    """With a small model of random weights and a vocabulary of 151,936."""
    rows = [
        [name, f"{seconds:.2f}", f"{part['times_faster_than_unconstrained'][name]:.2f}x"]
        for name, seconds in part["seconds"].items()
    ]
    setting = f"{part['items']:,} items, a model of {part['model']['parameters'] / 1e6:.0f} M parameters"
    return markdown_table([setting, "seconds", "as fast as unconstrained"], rows)


def scores_table(part: dict) -> str:
    """
    What `constrained_beam_search` finds, against transformers' beam search with the processor. Its scores differ by
    float32 rounding.
    """
    columns = {"same sequences, in order": "{same_sequences}"}
    columns |= {"scores differ by at most": "{largest_score_difference:.1e}"}
    return entries_table(columns | {"relatively": "{largest_relative_score_difference:.1e}"}, [part])


def build_table(part: dict) -> str:
    """
    Building, saving and loading, each in a process of its own. Of the peak, Python, torch and the sequences as they
    came had taken what stands under *before*.
    """
    columns = {"items": "{items:,}", "build, s": "{build_seconds:.2f}", "peak, MB": "{peak_megabytes:,}"}
    columns |= {"before, MB": "{peak_megabytes_before:,}", "bytes an item": "{bytes_per_sequence:.2f}"}
    columns |= {"save, s": "{save_seconds:.2f}", "file, MB": "{file_megabytes:.1f}", "load, s": "{load_seconds:.4f}"}
    return entries_table(columns | {"first step, s": "{first_step_seconds:.3f}"}, [part])


def validity_table(part: dict) -> str:
    """
    Beams over small catalogues (fixed and variable lengths, skewed, repeated, unsorted): how many are members, and how
    many have the sequence and the score of transformers' own `prefix_allowed_tokens_fn`.
    """
    columns = {"catalogues": "{catalogues:,}", "beams": "{beams:,}", "members of the catalogue": "{members:,}"}
    return entries_table(columns | {"as with transformers' own": "{same_as_transformers:,}"}, [part])


def recommender_table() -> str:
    """
    The bundled model of `examples/models/catalog`, trained on the histories of an invented shop up to the day before
    its fresh items came: ten beams for each user. With the index, none can be outside the catalogue.
    """
    evaluation = json.loads(EVALUATION.read_text())
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


def _by_depth(first: str, milliseconds: dict[str, list[float]], *last: list[str]) -> str:
    names = {name: f"{int(name):,}" if name.isdigit() else name for name in milliseconds}
    rows = [[names[name], *(f"{taken:.2f}" for taken in by_depth)] for name, by_depth in milliseconds.items()]
    return markdown_table([first, *DEPTHS], [*rows, *last])


def _beside_fill(first: str, times: Iterable[tuple[str, dict]], over: dict[str, float]) -> str:
    columns = {first: "{at:,}", "processor, ms": "{processor:.2f}", "one fill, ms": "{fill:.2f}"}
    entries = [{"at": int(at), "over": over[at], **taken} for at, taken in times]
    return entries_table(columns | {"processor over fill": "{over:.2f}x"}, entries)


TABLES = (
    Table("A call, by size of the catalogue", ("step",), step_table),
    Table("A call, by size of the vocabulary", ("step",), vocabulary_table),
    Table("A call beside one fill", ("wide",), wide_table),
    Table("A wide node", ("nodes",), nodes_table),
    Table("Other catalogues", ("catalogues",), catalogues_table),
    Table("What else there is", ("baselines",), baselines_table),
    Table("Whole beam searches", ("search",), search_table),
    Table("The same beams", ("search",), scores_table),
    Table("Building an index", ("build",), build_table),
    Table("Validity", ("validity",), validity_table),
    Table("A model that recommends", (), recommender_table),
)
QUOTES = {"docs/static.md": TABLES[0]}
