"""What a forward costs with each strategy, and how long an answer takes."""

from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_infeco import RemixConfig, remix
from hf_infeco.remix.denoiser import Denoiser
from hf_infeco.remix.filling import Filling
from hf_infeco.training.testbed.puzzle.evaluate import held_out
from hf_infeco.training.testbed.puzzle.puzzles import TASKS, as_prompts

from ..measuring import timed

# A larger model with random weights: real vocabularies and widths cost what a small one hides.
WIDE: dict[str, Any] = dict(
    vocab_size=32_000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    mask_token_id=0,
    pad_token_id=1,
)


def measure_forwards(
    model: PreTrainedModel, batches: tuple[int, ...], repeats: int, wide: dict
) -> list[dict[str, Any]]:
    """Seconds per forward, confidence beside ReMix. Nothing is sure enough, so both take one forward per token."""
    entries = []
    for batch in batches:
        prompts = as_prompts(held_out("sudoku", batch)).to(model.device)
        entries.append({"model": "puzzle", "batch": batch, **per_forward(model, prompts, 16, repeats)})
    torch.manual_seed(0)
    large = remix.MaskedDiffusionLM(remix.MaskedDiffusionConfig(**wide)).eval().to(model.device)
    prompts = torch.randint(2, large.config.vocab_size, (1, 64), device=model.device)
    entries.append({"model": "wide", "batch": 1, **per_forward(large, prompts, 64, max(1, repeats // 8), forwards=8)})
    return entries


def per_forward(
    model: PreTrainedModel, prompts: torch.Tensor, length: int, repeats: int, forwards: int | None = None
) -> dict[str, Any]:
    """Median seconds per forward of both strategies, which run in turn, and ReMix's over confidence's."""
    forwards = forwards or length
    taken: dict[str, list[float]] = {"confidence": [], "remix": []}
    for repeat in range(repeats + 1):
        for strategy, seconds in taken.items():
            # tau_rej: every position is mixed at every step, the dearest case.
            config = RemixConfig(
                max_new_tokens=length, block_length=length, strategy=strategy, tau_conf=1.0, tau_rej=1.0
            )
            elapsed, _ = timed(prompts.device, lambda c=config: first_forwards(model, prompts, c, forwards))
            if repeat > 0:  # the first warms up
                seconds.append(elapsed / forwards)
    medians = {name: median(seconds) for name, seconds in taken.items()}
    ratio = median(ours / theirs for ours, theirs in zip(taken["remix"], taken["confidence"]))
    return {"length": length, "forwards": forwards, "seconds": medians, "remix_over_confidence": ratio}


def first_forwards(model: PreTrainedModel, prompts: torch.Tensor, config: RemixConfig, forwards: int) -> None:
    with torch.no_grad():
        filling = Filling(Denoiser(model, config), prompts, None, None)
        for _ in range(forwards):
            filling.step()


def measure_answers(model: PreTrainedModel, count: int, settings: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Median seconds per answer, one puzzle at a time, the strategies in turn."""
    entries = []
    for task, kind in TASKS.items():
        prompts = as_prompts(held_out(task, count)).to(model.device)
        taken: dict[str, list[float]] = {name: [] for name in settings}
        forwards: dict[str, list[int]] = {name: [] for name in settings}
        for prompt in prompts:
            for name, how in settings.items():
                length = kind.answer_length
                config = RemixConfig(**{"max_new_tokens": length, "block_length": length, **how})
                elapsed, output = timed(model.device, lambda c=config, p=prompt: remix.generate(model, p[None], c))
                taken[name].append(elapsed)
                forwards[name].append(int(output.forwards))
        for name in settings:
            seconds = sum(taken[name]) / count
            entries.append({"task": task, "point": name, "seconds": seconds, "forwards": sum(forwards[name]) / count})
    return entries
