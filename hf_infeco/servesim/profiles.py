"""Writes profiles: the files that `tables.py` reads."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tables import read_meta

Rows = Sequence[Mapping[str, Any]]


def write_profile(folder: Path, meta: Mapping[str, Any], tables: Mapping[int, Mapping[str, Rows]]) -> None:
    """
    Args:
        folder: is made where it is not there.
        meta: what `meta.yaml` says beside what it has said before.
        tables: by width and name, their rows.
    """
    for tp, named in tables.items():
        for name, rows in named.items():
            write_table(folder / f"tp{tp}" / f"{name}.csv", rows)
    write_meta(folder, meta)


def write_table(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
            for row in rows
        )


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Adds to what `meta.yaml` says."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(read_meta(folder) | dict(meta), sort_keys=False, allow_unicode=True)
    (folder / "meta.yaml").write_text(text, "utf-8")


def store_calibration(folder: Path, tp: int, correction: Mapping[str, float], held_out: Mapping[str, Any]) -> None:
    """Keeps a calibration with the profile's width, and with it the error band of every later answer."""
    calibration = read_meta(folder).get("calibration") or {}
    write_meta(
        folder,
        {"calibration": calibration | {f"tp{tp}": {"correction": dict(correction), "held_out": dict(held_out)}}},
    )


def with_sums(attention: Mapping[tuple[int, int, int, int], float]) -> list[dict[str, Any]]:
    """
    Rows of `attention.csv` out of prompts and decoding that were measured apart; a step with both takes their sum.

    Args:
        attention: seconds by (prefill_chunk, kv_prefill, n_decode, kv_decode), of which either half is 0.
    """
    chunks = {key: seconds for key, seconds in attention.items() if key[0]}
    decodes = {key: seconds for key, seconds in attention.items() if not key[0]}
    both = {
        (chunk, before, n, kv): first + second
        for (chunk, before, _, _), first in chunks.items()
        for (_, _, n, kv), second in decodes.items()
    }
    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    return [
        {**dict(zip(names, key)), "time_us": 1e6 * seconds} for key, seconds in sorted({**attention, **both}.items())
    ]
