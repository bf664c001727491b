"""Where the public runs, tables and traces lie, and what each run was. `data/README.md` names sources and licences."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_infeco.servesim import Cluster, Instance, Link, Scheduler, read_trace
from hf_infeco.servesim.logs import Log, read_log

DATA = Path(__file__).with_name("data")
PCIE = Link(gb_per_s=16.0, latency_us=20.0)  # of the runs' own cluster files


@dataclass(frozen=True)
class PublicRun:
    """A real vLLM 0.19 run of 300 requests. `title` names it; `of` are the fields of its instance."""

    title: str
    folder: str
    workload: str
    of: dict[str, Any]

    @property
    def cluster(self) -> Cluster:
        instance = Instance(
            model=str(DATA / "runs" / self.folder), profile=str(DATA / "profiles" / self.folder), **self.of
        )
        return Cluster((instance,))

    @property
    def log(self) -> Log:
        """What the engine did; its prompts' blocks are in the workload's file."""
        log = read_log(self.rows)
        blocks = read_trace(DATA / "runs" / self.workload)
        return replace(log, requests=[replace(r, hash_ids=b.hash_ids) for r, b in zip(log.requests, blocks)])

    @property
    def rows(self) -> Path:
        return DATA / "runs" / self.folder / "requests.csv"


RUNS = (
    PublicRun(
        "RTX 4090, Llama-3.1-8B",
        "rtx4090__llama-3.1-8b",
        "workload_llama.jsonl",
        dict(kv_blocks=2588, scheduler=Scheduler(max_num_seqs=256)),
    ),
    PublicRun(
        "RTX PRO 6000, Llama-3.1-8B",
        "rtxpro6000__llama-3.1-8b",
        "workload_llama.jsonl",
        dict(memory_gb=96.0, scheduler=Scheduler(max_num_seqs=128)),
    ),
    PublicRun(
        "RTX PRO 6000, Qwen3-32B, TP2",
        "rtxpro6000__qwen3-32b",
        "workload_qwen3.jsonl",
        dict(memory_gb=96.0, tp=2, link=PCIE, scheduler=Scheduler(max_num_seqs=128)),
    ),
    PublicRun(
        "RTX PRO 6000, Qwen3-30B-A3B, DP2 EP2",
        "rtxpro6000__qwen3-30b-a3b",
        "workload_qwen3.jsonl",
        dict(memory_gb=96.0, dp=2, link=PCIE, scheduler=Scheduler(max_num_seqs=128)),
    ),
)
