"""The H100 summaries of LLMServingSim's paper: tables of its HF profiler, and its own measured vLLM runs."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_infeco.servesim import Cluster, Instance, Link, Scheduler, read_trace, simulate
from hf_infeco.servesim.grid import AttentionGrid, Curve
from hf_infeco.servesim.shape import ModelShape
from hf_infeco.servesim.tables import Tables

from .public import DATA

PAPER = DATA / "paper"
NANO = 1e-9
HEAD = {"lm_head"}
WHOLE = {"embedding", "final_layernorm"}
LEFT_OUT = {"attn"}  # attention has tables of its own
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
# The link is that of its cluster files; cases with prefix caching are another figure's. Its vLLM was not asynchronous.
NVLINK = Link(gb_per_s=900.0)
SCHEDULER = Scheduler(max_num_seqs=128, async_scheduling=False, prefix_caching=False)
CASES = {
    "SD": ("h100__llama-3.1-70b", "workload_sharegpt300_llama.jsonl", ((1, "both"),)),
    "MD": ("h100__llama-3.1-70b", "workload_sharegpt300_llama.jsonl", ((2, "both"),)),
    "PDD": ("h100__llama-3.1-70b", "workload_sharegpt300_llama.jsonl", ((1, "prefill"), (1, "decode"))),
}


def measure_paper() -> list[dict[str, Any]]:
    """An entry per case and framework: output tokens/s, mean TTFT and time per token in ms."""
    entries = []
    measured = {(row["case"], row["framework"]): row for row in _summary()}
    for case, (profile, trace, roles) in CASES.items():
        results = simulate(_cluster(profile, roles), read_trace(PAPER / trace), tables=paper_tables)
        summary = results.summary()
        ours = {
            "throughput": summary["output_tokens_per_s"],
            "ttft": 1e3 * summary["ttft"]["mean"],
            "tpot": 1e3 * summary["tpot"]["mean"],
        }
        theirs = {who: _numbers(measured[case, name]) for who, name in FRAMEWORKS.items()}
        entries.append({"case": case, "hf_infeco": ours, **theirs})
    return entries


FRAMEWORKS = {
    "vLLM": "vLLM",
    "LLMServingSim": "LLMServingSim2.0",
    "Vidur": "Vidur",
    "APEX": "APEX",
    "TokenSim": "TokenSim",
}
COLUMNS = {"throughput": "throughput_tok_s", "ttft": "mean_ttft_ms", "tpot": "mean_tpot_ms"}


def _summary() -> Iterator[dict[str, str]]:
    with (PAPER / "latency_summary.csv").open(newline="", encoding="utf-8") as file:
        yield from (row for row in csv.DictReader(file) if row["figure"] == "figure_8")


def _numbers(row: dict[str, str]) -> dict[str, float | None]:
    """An X in the paper's file is a case that a simulator cannot do."""
    return {name: None if row[column] == "X" else float(row[column]) for name, column in COLUMNS.items()}


def _cluster(profile: str, roles: tuple[tuple[int, str], ...]) -> Cluster:
    each = dict(model=str(PAPER / profile), profile=str(PAPER / profile), tp=4, memory_gb=80.0, link=NVLINK)
    instances = tuple(Instance(count=count, role=role, scheduler=SCHEDULER, **each) for count, role in roles)
    return Cluster(instances, routing="round_robin", transfer=NVLINK)


def paper_tables(instance: Instance, shape: ModelShape) -> Tables:
    """Tables of the paper's form: prompts and decoding were measured apart and add up."""
    folder = Path(instance.profile) / f"tp{instance.tp}"
    layers: dict[str, list[tuple[int, float]]] = {}
    for row in _rows(folder / "layers.csv"):
        layers.setdefault(row["layer"], []).append((int(row["tokens"]), NANO * float(row["latency_ns"])))
    curves = {name: Curve(*zip(*points)) for name, points in layers.items() if name not in LEFT_OUT}
    times = {name: 1 if name in WHOLE else shape.layers for name in curves if name not in HEAD}
    at = range(max(curve.largest for curve in curves.values()) + 1)
    (head,) = (curves[name] for name in HEAD)
    return Tables(
        dense=Curve(at, [sum(count * curves[name](n) for name, count in times.items()) for n in at]),
        head=Curve(at[:513], [head(n) for n in at[:513]]),
        attention=AttentionGrid(_attention(folder)),
        source=f"measured, {folder.parent.name} (the paper's)",
    )


def _attention(folder: Path) -> list[tuple[int, int, int, int, float]]:
    prefill = {
        (int(row["prefill_chunk_size"]), int(row["kv_cache_size"])): NANO * float(row["prediction"])
        for row in _rows(folder / "attn_prefill.csv")
    }
    shortest = min(chunk for chunk, _ in prefill)  # a kernel on fewer tokens takes as long
    prefill |= {(1, kv): seconds for (chunk, kv), seconds in prefill.items() if chunk == shortest}
    decode = {
        (int(row["batch_size"]), int(row["kv_cache_size"])): NANO * float(row["prediction"])
        for row in _rows(folder / "attn_decode.csv")
        if int(row["batch_size"]) in COUNTS
    }
    rows = [(chunk, kv, 0, 0, seconds) for (chunk, kv), seconds in prefill.items()]
    rows += [(0, 0, n, kv, seconds) for (n, kv), seconds in decode.items()]
    rows += [
        (chunk, before, n, kv, first + second)
        for (chunk, before), first in prefill.items()
        for (n, kv), second in decode.items()
    ]
    return rows


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
