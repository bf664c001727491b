"""The H100 summaries of LLMServingSim's paper: tables of its HF profiler, and its own measured vLLM runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_infeco.servesim import Cluster, Instance, Link, Scheduler, read_trace, simulate
from hf_infeco.servesim.cells import csv_rows
from hf_infeco.servesim.profiles import with_sums
from hf_infeco.servesim.shape import ModelShape
from hf_infeco.servesim.tables import Tables, attention_grid, sum_of_curves

from .public import DATA

PAPER = DATA / "paper"
NANO = 1e-9
HEAD = "lm_head"
APART = {HEAD, "attn"}  # attention has tables of its own
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
# The link is that of its cluster files; cases with prefix caching are another figure's. Its vLLM was not asynchronous.
NVLINK = Link(gb_per_s=900.0)
SCHEDULER = Scheduler(max_num_seqs=128, async_scheduling=False, prefix_caching=False)
CASES = {
    "SD": ("h100__llama-3.1-70b", "workload_sharegpt300_llama.jsonl", ((1, "both"),)),
    "MD": ("h100__llama-3.1-70b", "workload_sharegpt300_llama.jsonl", ((2, "both"),)),
    "PDD": ("h100__llama-3.1-70b", "workload_sharegpt300_llama.jsonl", ((1, "prefill"), (1, "decode"))),
}
FRAMEWORKS = {
    "vLLM": "vLLM",
    "LLMServingSim": "LLMServingSim2.0",
    "Vidur": "Vidur",
    "APEX": "APEX",
    "TokenSim": "TokenSim",
}
COLUMNS = {"throughput": "throughput_tok_s", "ttft": "mean_ttft_ms", "tpot": "mean_tpot_ms"}


def measure_paper() -> list[dict[str, Any]]:
    """
    An entry per case: of each framework output tokens/s, mean TTFT and time per token in ms. The case whose prompts
    and decoding are apart has them with a fitted hand-over too.
    """
    entries = []
    measured = {
        (row["case"], row["framework"]): row
        for _, row in csv_rows(PAPER / "latency_summary.csv", "figure", "case", "framework", *COLUMNS.values())
        if row["figure"] == "figure_8"
    }
    for case in CASES:
        theirs = {who: _numbers(measured[case, name]) for who, name in FRAMEWORKS.items()}
        entry = {"case": case, "hf_infeco": _serve(case), **theirs}
        if case == "PDD":
            entry["handover_s"] = _fit_handover(case, theirs["vLLM"]["tpot"])
            entry["fitted"] = _serve(case, entry["handover_s"])
        entries.append(entry)
    return entries


def _serve(case: str, handover_s: float = 0.0) -> dict[str, float]:
    profile, trace, roles = CASES[case]
    cluster = _cluster(profile, roles, handover_s)
    summary = simulate(cluster, read_trace(PAPER / trace), tables=paper_tables).summary()
    return {
        "throughput": summary["output_tokens_per_s"],
        "ttft": 1e3 * summary["ttft"]["mean"],
        "tpot": 1e3 * summary["tpot"]["mean"],
    }


def _fit_handover(case: str, tpot: float) -> float:
    """Seconds, to 0.02 ms, with which the time per token passes the measured one."""
    low, high = 0.0, 0.1
    while high - low > 2e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if _serve(case, middle)["tpot"] < tpot else (low, middle)
    return (low + high) / 2


def _numbers(row: dict[str, str]) -> dict[str, float | None]:
    """An X in the paper's file is a case that a simulator cannot do."""
    return {name: None if row[column] == "X" else float(row[column]) for name, column in COLUMNS.items()}


def _cluster(profile: str, roles: tuple[tuple[int, str], ...], handover_s: float) -> Cluster:
    folder = str(PAPER / profile)
    each = Instance(folder, folder, tp=4, memory_gb=80.0, link=NVLINK, scheduler=SCHEDULER, handover_s=handover_s)
    instances = tuple(replace(each, count=count, role=role) for count, role in roles)
    return Cluster(instances, routing="round_robin", transfer=NVLINK)


def paper_tables(instance: Instance, shape: ModelShape) -> Tables:
    """Tables of the paper's form: prompts and decoding were measured apart and add up."""
    folder = Path(instance.profile) / f"tp{instance.tp}"
    rows = [
        {"layer": row["layer"], "tokens": int(row["tokens"]), "time_us": float(row["latency_ns"]) / 1e3}
        for _, row in csv_rows(folder / "layers.csv", "layer", "tokens", "latency_ns")
    ]
    return Tables(
        dense=sum_of_curves([row for row in rows if row["layer"] not in APART], "tokens", shape.layers),
        head=sum_of_curves([row for row in rows if row["layer"] == HEAD], "tokens"),
        attention=attention_grid(with_sums(_attention(folder))),
        source=f"measured, {folder.parent.name} (the paper's)",
    )


def _attention(folder: Path) -> dict[tuple[int, int, int, int], float]:
    """Seconds by (prefill_chunk, kv_prefill, n_decode, kv_decode), of which either half is 0."""
    prefill = {
        (int(row["prefill_chunk_size"]), int(row["kv_cache_size"])): NANO * float(row["prediction"])
        for _, row in csv_rows(folder / "attn_prefill.csv", "prefill_chunk_size", "kv_cache_size", "prediction")
    }
    shortest = min(chunk for chunk, _ in prefill)  # a kernel on fewer tokens takes as long
    prefill |= {(1, kv): seconds for (chunk, kv), seconds in prefill.items() if chunk == shortest}
    decode = {
        (int(row["batch_size"]), int(row["kv_cache_size"])): NANO * float(row["prediction"])
        for _, row in csv_rows(folder / "attn_decode.csv", "batch_size", "kv_cache_size", "prediction")
        if int(row["batch_size"]) in COUNTS
    }
    return {(*point, 0, 0): seconds for point, seconds in prefill.items()} | {
        (0, 0, *point): seconds for point, seconds in decode.items()
    }
