"""What a switch costs on a real model, by its parts, and what split mode costs beside bare continuous batching."""

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from hf_infeco.flying import FlyingManager

from .schedules import COMPUTES, MOVES, answers


def load(folder: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def pool(tokens: int) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(page_size=32, num_blocks=tokens // 32, max_batch_tokens=256)


def ids_of(model: PreTrainedModel, length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, model.config.vocab_size, (length,), generator=generator, device="cpu").tolist()


def first_token(manager: FlyingManager, ids: list[int]) -> float:
    """Seconds until the first token of a request on an idle manager."""
    start = time.perf_counter()
    name = manager.add_request(ids, max_new_tokens=1)
    answers(manager, {name}, 600.0)
    return time.perf_counter() - start


def measure_switch(folder: Path, length: int, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Idle flips, then one request of `length` tokens that is moved, or computed again, by each switch."""
    model = load(str(folder))
    manager = FlyingManager(model, continuous_batching_config=pool(2 * (length + new_tokens)), timeout=60.0)
    manager.start()
    if not manager.is_front:
        manager.wait()
        return {}
    for width in (2, 1) * (repeats + 1):
        manager.switch(width)
    idle = manager.switches[2:]
    found: dict[str, Any] = {
        "idle": [{"width": w, **_medians([each for each in idle if each["width"] == w])} for w in (2, 1)],
        "modules": len(manager.switcher._overlays[2].swaps),
    }
    ids, short = ids_of(model, length), ids_of(model, 32, seed=1)
    for width in (1, 2):
        manager.switch(width)
        found[f"first_token_s_width_{width}"] = median(first_token(manager, short) for _ in range(repeats))
    manager.switch(1)
    prefill = first_token(manager, ids)
    texts = {}
    for name, costs in (("unswitched", None), ("moved", MOVES), ("computed again", COMPUTES)):
        texts[name], switches = _switched_text(manager, ids, new_tokens, costs)
        if costs is MOVES:
            found["moved"] = switches
    manager.stop()
    found |= {"length": length, "prefill_s": prefill, "costs": manager.costs._asdict()}
    found["texts_equal"] = len({tuple(text) for text in texts.values()}) == 1
    found["prefill_over_window"] = prefill / max(each["window_s"] for each in found["moved"])
    return found


def _medians(switches: list[dict]) -> dict[str, float]:
    return {name: median(each[name] for each in switches) for name in ("wait_s", "window_s", "flip_s")}


def _switched_text(manager: FlyingManager, ids: list[int], new: int, costs: Any) -> tuple[list[int], list[dict]]:
    """The answer, while the width goes to 2 and back after its first tokens."""
    before, measured = len(manager.switches), manager.costs
    name = manager.add_request(ids, max_new_tokens=new, streaming=True)
    manager.costs = costs or measured
    output, seen = None, 0
    while output is None or not output.is_finished():
        output = manager.get_result(timeout=0.1) or output
        is_going_on = output is not None and not output.is_finished()
        if costs and seen < 2 and is_going_on and len(output.generated_tokens) >= 2 + 2 * seen:
            manager.switch(2 if manager.width == 1 else 1)
            seen += 1
    manager.costs = measured
    if manager.width != 1:
        manager.switch(1)
    assert output.request_id == name
    return output.generated_tokens, manager.switches[before:]


def measure_split(folder: Path, requests: int, length: int, new: int, repeats: int) -> dict[str, Any]:
    """Tokens per second of two replicas: of a manager at width 1, and of transformers' own beside it, in turn."""
    model = load(str(folder))
    settings = pool(2 * requests * (length + new))
    manager = FlyingManager(model, continuous_batching_config=settings, timeout=60.0)
    manager.start()
    prompts = [ids_of(model, length, seed) for seed in range(2 * requests)]
    rates: dict[str, list[float]] = {"flying": [], "bare": []}
    for _ in range(repeats):
        dist.barrier()
        if manager.is_front:
            start = time.perf_counter()
            names = {manager.add_request(prompt, max_new_tokens=new) for prompt in prompts}
            answers(manager, names, 600.0)
            rates["flying"].append(len(prompts) * new / (time.perf_counter() - start))
        dist.barrier()
        rates["bare"].append(_bare(model, prompts[dist.get_rank() :: 2], new, settings) * 2)
    dist.barrier()
    manager.stop() if manager.is_front else manager.wait()
    return {
        "requests": len(prompts),
        "prompt_tokens": length,
        "new_tokens": new,
        **{f"{name}_tokens_per_s": max(found) for name, found in rates.items() if found},
        "split_over_bare": max(rates["flying"] or [0]) / max(rates["bare"]),
    }


def _bare(model: PreTrainedModel, prompts: list, new: int, settings: ContinuousBatchingConfig) -> float:
    """Tokens per second of one replica's own engine; both replicas run theirs at once."""
    with model.continuous_batching_context_manager(continuous_batching_config=settings) as engine:
        dist.barrier()
        start, left = time.perf_counter(), len(prompts)
        engine.add_requests(prompts, max_new_tokens=new)
        while left:
            output = engine.get_result(timeout=0.1)
            left -= output is not None and output.is_finished()
        dist.barrier()
        return len(prompts) * new / (time.perf_counter() - start)
