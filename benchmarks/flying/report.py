"""The tables of Flying Serving, from the file of results."""

from typing import Any

from ..documents import Table, markdown_table


def switch_table(part: dict[str, Any]) -> str:
    """
    Two processes on the cores of one processor, over gloo. The switch waits until the loop is between two steps, then
    the window begins: agree, move KV, lay the pool out, flip the views. Idle switches move nothing. The prompt was
    computed by the front at width 1, and its KV was moved by both switches of its answer; what came back to the front
    at the second one was sent by the other process.
    """
    rows = [[f"idle, to width {each['width']}", "", *_times(each)] for each in part["idle"]]
    for each in part["moved"]:
        name = f"a request of {part['length']:,} tokens, to width {each['width']}"
        rows.append([name, f"{each['bytes'] / 1e6:.1f}", *_times(each)])
    table = markdown_table(["switch", "MB sent by the front", "wait, ms", "window, ms", "flip, ms"], rows)
    widths = ", ".join(f"{1e3 * part[f'first_token_s_width_{width}']:.0f} ms at width {width}" for width in (1, 2))
    equal = "equal" if part["texts_equal"] else "NOT equal"
    return (
        f"{table}\n\nComputing the prompt took {part['prefill_s']:.2f} s at width 1, "
        f"{part['prefill_over_window']:.1f}x the slower window. Texts without a switch, with KV moved and with KV "
        f"computed again are {equal}. First token of 32 tokens on an idle manager: {widths}."
    )


def _times(switch: dict[str, float]) -> list[str]:
    return [f"{1e3 * switch[name]:.2f}" for name in ("wait_s", "window_s", "flip_s")]


def split_table(part: dict[str, Any]) -> str:
    """Two replicas, half of the requests each: a manager at width 1, and transformers' own engine in both."""
    row = [str(part["requests"]), str(part["prompt_tokens"]), str(part["new_tokens"])]
    row += [f"{part[name]:.1f}" for name in ("flying_tokens_per_s", "bare_tokens_per_s")]
    header = ["requests", "prompt", "answer", "at width 1, tokens/s", "bare, tokens/s", "ratio"]
    return markdown_table(header, [[*row, f"{part['split_over_bare']:.3f}x"]])


def trace_table(entries: list[dict[str, Any]]) -> str:
    """
    Lengths of a real trace, cut down to this machine: calm, a burst, calm again; the last request of a calm phase has
    priority. Each layout saw the same requests, one layout after another. Times to the first token are P90 by phase.
    """
    phases = list(entries[0]["ttft_p90_s"])
    rows = [
        [each["layout"], *(f"{each['ttft_p90_s'][phase]:.2f}" for phase in phases)]
        + [f"{1e3 * each['tpot_mean_s']:.0f}", f"{each['tokens_per_s']:.1f}", str(each["switches"])]
        for each in entries
    ]
    header = ["layout", *(f"{phase}, s" for phase in phases), "per token, ms", "tokens/s", "switches"]
    return markdown_table(header, rows)


def schedules_table(part: dict[str, Any]) -> str:
    """
    Random arrivals, cancels, priorities and switches on a model with nine heads over three, KV moved, computed again
    or by what is cheaper. Every text that was not cancelled is compared with what `generate()` says of its prompt.
    """
    names = {"schedules": "schedules", "requests": "requests", "switches": "switches", "cancelled": "cancels"}
    row = [f"{part[name]:,}" for name in names]
    header = [*names.values(), "schedules with a wrong or missing text", "blocks left over"]
    return markdown_table(header, [[*row, str(len(part["wrong"])), str(part["blocks_left"])]])


TABLES = (
    Table("A switch", ("switch",), switch_table),
    Table("Split mode beside bare continuous batching", ("split",), split_table),
    Table("A bursty trace", ("trace",), trace_table),
    Table("Random schedules", ("schedules",), schedules_table),
)
