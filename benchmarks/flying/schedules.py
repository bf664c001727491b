"""Random schedules of arrivals, cancels, priorities and switches, whose every text is compared with generate()'s."""

import random
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from hf_infeco.flying import FlyingManager
from hf_infeco.flying.window import Costs

MOVES, COMPUTES = Costs(0.0, 0.0, 1.0), Costs(1.0, 1.0, 0.0)  # KV is always moved, and never
REQUESTS = 10  # of a schedule
VOCABULARY = 101
TINY = dict(vocab_size=VOCABULARY, hidden_size=144, intermediate_size=96, num_hidden_layers=2, head_dim=16)
UNEVEN = TINY | dict(num_attention_heads=9, num_key_value_heads=3, initializer_range=0.15, tie_word_embeddings=False)


def tiny_model() -> PreTrainedModel:
    """Random weights, nine heads over three: two processes hold [2, 1] of these. The same in every process."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**UNEVEN, eos_token_id=None)).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def alone(model: PreTrainedModel, ids: list[int], new: int) -> list[int]:
    """The greedy text of a request by itself."""
    rows = torch.tensor([ids], dtype=torch.long, device=model.device)
    return model.generate(rows, max_new_tokens=new, min_new_tokens=new, do_sample=False)[0, len(ids) :].tolist()


def answers(manager: FlyingManager, wanted: set[str], seconds: float) -> dict[str, list]:
    """All answers of the wanted requests that come in time."""
    found: dict[str, list] = {}
    deadline = time.monotonic() + seconds
    while not wanted <= set(found) and time.monotonic() < deadline:
        output = manager.get_result(timeout=0.1)
        if output is not None and output.is_finished():
            found.setdefault(output.request_id, []).append(output)
    return found


def prompt(length: int, seed: int) -> list[int]:
    """Token ids; those of one seed begin alike, so that prefixes are shared."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (200,), generator=generator, device="cpu")[:length].tolist()


def schedule(
    manager: FlyingManager, reference: PreTrainedModel, seed: int, texts: dict, seconds: float
) -> dict[str, Any]:
    """One random schedule of ten requests; `texts` keeps what the reference said. `wrong` is what went wrong."""
    rng, measured = random.Random(seed), manager.costs
    wanted: dict[str, tuple] = {}
    cancelled, switches = set(), 0
    for _ in range(REQUESTS):
        ids, new = prompt(rng.choice([3, 17, 40, 90, 150]), rng.randint(0, 5)), rng.choice([1, 8, 24])
        options = dict(priority=rng.choice([0, 0, 1]), streaming=rng.random() < 0.3)
        wanted[manager.add_request(ids, max_new_tokens=new, **options)] = (tuple(ids), new)
        time.sleep(rng.choice([0, 0, 0.01, 0.05]))
        if rng.random() < 0.2:
            cancelled.add(victim := rng.choice(list(wanted)))
            manager.cancel_request(victim)
        if rng.random() < 0.4:
            manager.costs = rng.choice([MOVES, COMPUTES, measured])
            manager.switch(rng.choice([width for width in manager.switcher.widths if width != manager.width]))
            switches += 1
    manager.costs = measured
    found, wrong = answers(manager, set(wanted) - cancelled, seconds), []
    for name, (ids, new) in wanted.items():
        if (ids, new) not in texts:
            texts[ids, new] = alone(reference, list(ids), new)
        outputs = found.get(name, [])
        if name not in cancelled and [output.generated_tokens for output in outputs] != [texts[ids, new]]:
            wrong.append((name, len(ids), new, [(output.generated_tokens, output.error) for output in outputs]))
    return {"seed": seed, "requests": REQUESTS, "switches": switches, "cancelled": len(cancelled), "wrong": wrong}


def run_schedules(count: int) -> dict[str, Any]:
    """What became of `count` schedules on one manager, in a group of processes."""
    model, reference = tiny_model(), tiny_model()
    pool = ContinuousBatchingConfig(page_size=16, num_blocks=40, max_batch_tokens=64)
    manager = FlyingManager(model, continuous_batching_config=pool, timeout=300.0)
    manager.start()
    if not manager.is_front:
        manager.wait()
        return {}
    texts: dict = {}
    runs = [schedule(manager, reference, seed, texts, seconds=600.0) for seed in range(count)]
    time.sleep(0.3)  # the last cancels
    blocks = manager.pool.num_used_blocks()
    manager.stop()
    return {
        "where": {"model": "a random llama of two layers"},
        "schedules": count,
        **{name: sum(run[name] for run in runs) for name in ("requests", "switches", "cancelled")},
        "wrong": [
            {"seed": run["seed"], "requests": [list(entry[:3]) for entry in run["wrong"]]}
            for run in runs
            if run["wrong"]
        ],
        "blocks_left": blocks,
    }
