"""The tables of SideQuest, from the file of results."""

from typing import Any

from ..documents import Table, markdown_table

Entries = list[dict[str, Any]]


def policies_table(entries: Entries) -> str:
    """
    Greedy, held-out tasks of 4 or 6 hops in one chain and 2 or 3 hops in two, like those that the adapters were
    trained on. Ratios are means over tasks of each task's, against keeping everything; reads count the tokens that the
    main thread saw in each forward, and in brackets those that side threads added.
    """
    header = ["", "right", "peak tokens", "peak", "KV reads", "malformed commands", "wrong deletions"]
    rows = [
        [
            entry["policy"],
            _accuracy(entry),
            f"{entry['peak_tokens']:,.0f}",
            f"{entry['peak_ratio']:.2f}",
            f"{entry['reads_ratio']:.2f} ({entry['reads_ratio_with_side']:.2f})",
            _share(entry["malformed"], entry["commands"]),
            _share(entry["wrong"], entry["deletions"]),
        ]
        for entry in entries
    ]
    return markdown_table(header, rows)


def longer_table(entries: Entries) -> str:
    """The same on tasks longer than any that the adapters were trained on: 8 hops in one chain, 4 in each of two."""
    return policies_table(entries)


def baselines_table(entries: Entries) -> str:
    """
    The budget of each baseline is SideQuest's mean peak. A turn and a tool's result come on top of it while they are
    read, so their peaks are above.
    """
    header = ["", "right", "budget", "peak tokens", "peak", "KV reads"]
    rows = [
        [entry["policy"], _accuracy(entry), f"{entry['budget']:,}", f"{entry['peak_tokens']:,.0f}"]
        + [f"{entry['peak_ratio']:.2f}", f"{entry['reads_ratio']:.2f}"]
        for entry in entries
    ]
    return markdown_table(header, rows)


def _accuracy(entry: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in entry["interval_95"])
    return f"{entry['right']} of {entry['tasks']} ({low:.0f}-{high:.0f} %)"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" if whole else "-"


TABLES = (
    Table("Policies", ("policies",), policies_table),
    Table("Longer tasks", ("longer",), longer_table),
    Table("Baselines at SideQuest's peak", ("baselines",), baselines_table),
)
