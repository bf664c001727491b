"""A small profile and models for tests: times that follow a formula, so that every table is known."""

import json

from hf_infeco.servesim import Instance, Scheduler
from hf_infeco.servesim.grid import AttentionGrid, Curve, MoeGrid
from hf_infeco.servesim.settings import Correction
from hf_infeco.servesim.shape import ModelShape
from hf_infeco.servesim.skew import Skew
from hf_infeco.servesim.tables import Tables

CONFIG = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
}
SHAPE = ModelShape.from_config(CONFIG)
AXES = (0, 16, 64, 256, 1024), (0, 64, 1024), (0, 1, 8, 64), (0, 64, 2048)


def attention_seconds(chunk: int, kv_prefill: int, n: int, kv: int) -> float:
    return 1e-6 * (3 + 0.02 * chunk + 1e-5 * chunk * kv_prefill + 0.1 * n + 1e-4 * n * kv)


def attention_rows() -> list[tuple[int, int, int, int, float]]:
    """A full grid: what means nothing, or is nothing, has no row."""
    chunks, prefixes, counts, lengths = AXES
    return [
        (c, p, n, kv, attention_seconds(c, p, n, kv))
        for c in chunks
        for p in prefixes
        for n in counts
        for kv in lengths
        if (c or not p) and (n or not kv) and (not n or kv) and (c or n)
    ]


def tables(correction: Correction | None = None, with_skew: bool = True, with_experts: bool = False) -> Tables:
    skew = Skew({}, [0, 64], [[8, 64], [0.5, 1.0], [1024, 4096], [0, 1024]], default=0.1)
    experts = MoeGrid([(t, e, 1e-6 * (t + 10 * e)) for t in (1, 64, 1024) for e in (2, 8)])
    return Tables(
        dense=Curve([1, 1024], [1e-3, 20e-3]),
        head=Curve([1, 64], [1e-4, 2e-4]),
        attention=AttentionGrid(attention_rows()),
        moe=experts if with_experts else None,
        skew=skew if with_skew else None,
        correction=correction or Correction(),
        source="made up for tests",
    )


def instance(folder, **given) -> Instance:
    """An instance whose model lies in `folder`; its tables are handed to `simulate`."""
    path = folder / "config.json"
    if not path.exists():
        path.write_text(json.dumps(CONFIG))
    plain = {"profile": "", "kv_blocks": 64, "scheduler": Scheduler(max_num_seqs=8, max_num_batched_tokens=64)}
    return Instance(model=str(path), **{**plain, **given})


def same_tables(_instance, _shape) -> Tables:
    return TABLES


TABLES = tables()
