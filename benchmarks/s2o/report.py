"""The tables of S2O, from the file of results."""

from hf_infeco import S2OConfig

from ..documents import Table, entries_table, markdown_table

Entries = list[dict]


def speed_table(entries: Entries) -> str:
    """
    Time of the operator at an error of 5, 2 and 1 % at most; `tau` is the largest that keeps it on these heads, up to
    the default: larger ones would often do here, and on real models they [are not
    safe](real.md#where-tau-stops-being-safe). Where the loosest `tau` reaches several points, they share a row.
    *Missed* is the mass of what was not visited.
    """
    columns = {
        **{"input": "{input}", "tokens": "{tokens:,}", "dtype": "{dtype}", "tau": "{tau:.2g}", "error": "{error:.1%}"},
        **{"density": "{density:.3f}", "missed: estimate, true": "{missed:.1%}, {truly_missed:.1%}"},
        **{"dense, s": "{dense_seconds:.3f}", "S2O, s": "{s2o_seconds:.3f}"},
        **{"over the faster dense dtype": "**{speedup:.2f}x**", "cutting, of S2O's time": "{ranking_share:.0%}"},
    }
    return entries_table(columns, _distinct(entries))


def short_table(entries: Entries) -> str:
    """bfloat16: below the measured crossover the defaults run dense (density 1), and this is what asking costs."""
    columns = {"tokens": "{tokens:,}", "dense, s": "{dense:.5f}", "defaults, s": "{s2o:.5f}"}
    return entries_table(columns | {"of the dense time": "{over_dense:.3f}", "density": "{density:.3f}"}, entries)


def error_table(entries: Entries) -> str:
    """
    With needles that only one query row seeks (found: that row's error is below 10 %). *Captured* are the heads of all
    layers of the recall model.
    """
    columns = {"defaults, input": "{input}", "tokens": "{tokens:,}", "error": "{error:.1%}"}
    columns |= {"worst head": "{worst_head:.1%}", "density": "{density:.3f}", "needles found": "{hits}"}
    hits = [f"{entry['found']} / {entry['needles']}" if "needles" in entry else "" for entry in entries]
    return entries_table(columns, [entry | {"hits": hit} for entry, hit in zip(entries, hits)])


def rules_table(entries: Entries) -> str:
    """
    What the selection rules of other systems lose, as multiples of S2O's mean squared error, each at the knob at which
    it visits at least as many pairs. *S2O without means* leaves out what is not visited; *mean-query order* is the
    paper's.
    """
    cells: dict[tuple, dict[str, dict]] = {}
    own: dict = {}
    for entry in entries:
        own = entry if entry["rule"] == "S2O" else own
        cells.setdefault((entry["input"], entry["tokens"], own["knob"]), {})[entry["rule"]] = entry
    names = [name for name in next(iter(cells.values())) if name != "S2O"]
    rows = [
        [name, f"{tokens:,}", f"{cell['S2O']['density']:.3f}", f"{cell['S2O']['mse']:.2g}"]
        + [f"{cell[rule]['mse'] / cell['S2O']['mse']:.3g}x" for rule in names]
        for (name, tokens, _), cell in cells.items()
    ]
    return markdown_table(["input", "tokens", "density", "S2O's MSE", *names], rows)


def recall_table(entries: Entries) -> str:
    """
    Needles that the bundled recall model finds in real text. Before its last two layers it attends so diffusely that
    hardly a pair can be left out, by any rule.
    """
    columns = {"attention": "{attention}", "tokens": "{tokens:,}", "right answers": "{correct:,} of {total:,}"}
    columns |= {"95 % interval": "{interval_95[0]:.2%} - {interval_95[1]:.2%}", "density": "{density:.3f}"}
    return entries_table(columns, [{"density": 1} | entry for entry in entries])


def perplexity_table(entries: Entries) -> str:
    """The recall model on held-out text."""
    dense = {entry["tokens"]: entry["perplexity"] for entry in entries if entry["attention"] == "dense"}
    columns = {"attention": "{attention}", "tokens": "{tokens:,}", "perplexity": "{perplexity:.4f}"}
    changes = [{"change": entry["perplexity"] / dense[entry["tokens"]] - 1} for entry in entries]
    return entries_table(columns | {"against dense": "{change:+.2%}"}, [a | b for a, b in zip(entries, changes)])


def brief_table(entries: Entries) -> str:
    """Trained heads at the default tau in bfloat16."""
    columns = {"heads": "{input}", "tokens": "{tokens:,}", "error": "{error:.1%}", "density": "{density:.3f}"}
    columns |= {"dense, s": "{dense_seconds:.2f}", "S2O, s": "{s2o_seconds:.2f}", "over dense": "**{speedup:.2f}x**"}
    setting = ("bfloat16", S2OConfig().tau)
    shown = [entry for entry in _distinct(entries) if (entry["dtype"], entry["tau"]) == setting]
    return entries_table(columns, [entry for entry in shown if "generated" not in entry["input"]])


def _distinct(entries: Entries) -> Entries:
    """Where the loosest tau reaches several points, one entry for all."""
    return list({(entry["input"], entry["tokens"], entry["dtype"], entry["tau"]): entry for entry in entries}.values())


TABLES = (
    Table("Time at a given error", ("speed",), speed_table),
    Table("Short prompts", ("short",), short_table),
    Table("Error of the defaults", ("error",), error_table),
    Table("Selection rules at equal density", ("rules",), rules_table),
    Table("Right answers", ("recall",), recall_table),
    Table("Perplexity", ("perplexity",), perplexity_table),
)
QUOTES = {"docs/s2o.md": Table("Trained heads", ("speed",), brief_table)}
