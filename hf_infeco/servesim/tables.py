"""
A profile: tables of one model on one device, by tensor parallel width.

    meta.yaml             where it comes from, skew's buckets, calibration
    tpN/dense.csv         layer, tokens, time_us                  one rank's kernels of one layer
    tpN/per_sequence.csv  layer, sequences, time_us               lm_head and sampler
    tpN/attention.csv     prefill_chunk, kv_prefill, n_decode, kv_decode, time_us
    tpN/moe.csv           tokens, activated_experts, time_us      where there are experts; one device's
    tpN/skew_fit.csv      alpha by bucket

Columns and folders are those of LLMServingSim 2.0 (arXiv 2602.23036), so that its bundles load unchanged.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .grid import AttentionGrid, Curve, MoeGrid
from .settings import Correction
from .skew import Skew

ONCE = {"embedding", "final_layernorm"}  # in a model; every other dense kernel is in each layer
TWICE = {"layernorm"}  # in a layer
MICRO = 1e-6


@dataclass(frozen=True)
class Tables:
    """
    Seconds of one rank.

    Args:
        dense: all kernels that see each token, of the whole model, by tokens.
        head: lm_head and sampler, by sequences.
        attention: one layer's.
        moe: one layer's experts, if there are some.
        skew: what unequal lengths cost, if that was measured.
        correction: of a calibration.
        source: where the figures come from, for every answer.
        band: errors of a calibration on requests it did not see, in %, by metric.
    """

    dense: Curve
    head: Curve
    attention: AttentionGrid
    moe: MoeGrid | None = None
    skew: Skew | None = None
    correction: Correction = field(default_factory=Correction)
    source: str = ""
    band: dict[str, Any] | None = None


def read_tables(folder: str | Path, tp: int, layers: int) -> Tables:
    """
    The tables of a profile.

    Args:
        folder: has `meta.yaml` and `tpN/`.
        tp: width.
        layers: of the model: the tables hold one layer.

    Raises:
        ValueError: a table or a column is missing, or a cell is no number; with file and line.
    """
    folder = Path(folder)
    at = folder / f"tp{tp}"
    if not at.is_dir():
        widths = sorted(path.name for path in folder.glob("tp*")) or ["none"]
        raise ValueError(f"{folder} has no tables for tensor parallel width {tp}, it has {', '.join(widths)}")
    meta = read_meta(folder)
    dense = _sum_of_curves(at / "dense.csv", "tokens", layers)
    head = _sum_of_curves(at / "per_sequence.csv", "sequences", layers, once=True)
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    rows = [(*(int(r[c]) for c in columns), MICRO * r["time_us"]) for r in _rows(at / "attention.csv", *columns)]
    moe_at = next((path for path in (at / "moe.csv", folder / "tp1" / "moe.csv") if path.is_file()), None)
    moe_rows = _rows(moe_at, "tokens", "activated_experts") if moe_at else ()
    moe = [(int(r["tokens"]), int(r["activated_experts"]), MICRO * r["time_us"]) for r in moe_rows]
    calibration = (meta.get("calibration") or {}).get(f"tp{tp}") or {}
    return Tables(
        dense=dense,
        head=head,
        attention=AttentionGrid(rows),
        moe=MoeGrid(moe) if moe else None,
        skew=Skew.read(at / "skew_fit.csv", meta.get("skew_fit") or {}, tp),
        correction=Correction(**calibration.get("correction", {})),
        source=_source(folder, meta),
        band=calibration.get("held_out"),
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """What `meta.yaml` says; nothing, if there is none."""
    import yaml  # 20 ms that a run without files need not wait for

    path = folder / "meta.yaml"
    try:
        return (yaml.safe_load(path.read_text("utf-8")) or {}) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: it is no YAML ({error})") from None


def _source(folder: Path, meta: dict[str, Any]) -> str:
    how = "estimated by a roofline" if meta.get("estimate") else meta.get("source", "measured")
    where = meta.get("gpu") or meta.get("hardware") or folder.name
    return f"{how}, {where}" + (f", {meta['profiled_at'][:10]}" if meta.get("profiled_at") else "")


def _rows(path: Path, *columns: str) -> Iterator[dict[str, Any]]:
    """Rows whose columns, and `time_us`, are numbers."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: the profile is not whole")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        needed = {*columns, "time_us"}
        if missing := needed - set(reader.fieldnames or ()):
            raise ValueError(f"{path}:1: the column {', '.join(sorted(missing))} is missing")
        for row in reader:
            try:
                yield row | {name: float(row[name]) for name in needed}
            except (TypeError, ValueError):
                raise ValueError(
                    f"{path}:{reader.line_num}: a cell of {', '.join(sorted(needed))} is no number"
                ) from None


def _sum_of_curves(path: Path, axis: str, layers: int, once: bool = False) -> Curve:
    """All layers of a table in one curve, each as often as the model has it."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in _rows(path, axis):
        points[row.get("layer", "")].append((int(row[axis]), MICRO * row["time_us"]))
    if not points:
        raise ValueError(f"{path}:1: there are no rows")
    curves = {name: Curve(*zip(*rows)) for name, rows in points.items()}
    times = {name: 1 if once or name in ONCE else layers * (1 + (name in TWICE)) for name in curves}
    at = range(max(curve.largest for curve in curves.values()) + 1)
    return Curve(at, [sum(times[name] * curve(n) for name, curve in curves.items()) for n in at])
