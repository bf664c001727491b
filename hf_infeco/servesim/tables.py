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

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cells import csv_rows, number
from .grid import AttentionGrid, Curve, MoeGrid
from .settings import Correction
from .skew import Skew

ONCE = {"embedding", "final_layernorm"}  # in a model; every other dense kernel is in each layer
TWICE = {"layernorm"}  # in a layer
ATTENTION_AXES = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
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
    moe_at = next((path for path in (at / "moe.csv", folder / "tp1" / "moe.csv") if path.is_file()), None)
    moe_rows = _rows(moe_at, "tokens", "activated_experts") if moe_at else ()
    moe = [(int(r["tokens"]), int(r["activated_experts"]), MICRO * r["time_us"]) for r in moe_rows]
    calibration = (meta.get("calibration") or {}).get(f"tp{tp}") or {}
    return Tables(
        dense=sum_of_curves(_rows(at / "dense.csv", "tokens"), "tokens", layers),
        head=sum_of_curves(_rows(at / "per_sequence.csv", "sequences"), "sequences"),
        attention=attention_grid(_rows(at / "attention.csv", *ATTENTION_AXES)),
        moe=MoeGrid(moe) if moe_at else None,
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


def sum_of_curves(rows: Iterable[Mapping[str, Any]], axis: str, layers: int = 1) -> Curve:
    """
    All kernels of a table in one curve, each as often as the model has it.

    Args:
        rows: `layer`, `time_us` and the axis.
        axis: `tokens` or `sequences`.
        layers: of the model; a table by sequences is of no layer.
    """
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        points[row.get("layer", "")].append((int(row[axis]), MICRO * row["time_us"]))
    curves = {name: Curve(*zip(*measured)) for name, measured in points.items()}
    times = {name: 1 if name in ONCE else layers * (1 + (name in TWICE)) for name in curves}
    at = range(max(curve.largest for curve in curves.values()) + 1)
    return Curve(at, [sum(times[name] * curve(n) for name, curve in curves.items()) for n in at])


def attention_grid(rows: Iterable[Mapping[str, Any]]) -> AttentionGrid:
    """One layer's attention out of the rows of `attention.csv`."""
    return AttentionGrid([(*(int(row[axis]) for axis in ATTENTION_AXES), MICRO * row["time_us"]) for row in rows])


def _rows(path: Path, *columns: str) -> Iterator[dict[str, Any]]:
    """Rows whose columns, and `time_us`, are numbers; at least one."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: the profile is not whole")
    line, needed = 1, ("time_us", *columns)
    for line, row in csv_rows(path, *needed):
        yield row | {name: number(row, name, path, line) for name in needed}
    if line == 1:
        raise ValueError(f"{path}:1: there are no rows")
