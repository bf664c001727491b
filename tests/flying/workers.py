"""What the processes of a test do; each returns what a test then makes claims about."""

import time

import torch
import torch.distributed as dist

import hf_infeco
from hf_infeco.flying import ParallelSwitcher

from ..contract.families import build as contract_build
from ..contract.settings import EXACT, LOSSY
from .models import NAMES, UNEVEN, build, prompt
from .processes import TIMEOUT, message_of


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=prompt(2, 40)).logits


def nll(scores: torch.Tensor) -> float:
    ids = prompt(2, 40)
    return float(torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


def addresses(model) -> list[int]:
    return [parameter.data_ptr() for parameter in model.parameters()]


def flip_seconds(switcher: ParallelSwitcher, width: int) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        switcher.flip(width)
        switcher.flip(1)
        best = min(best, (time.perf_counter() - start) / 2)
    return best


def switch_family(name: str, max_width: int, **changes) -> dict:
    """Logits at each width against those of width 1, and what is left of the switch afterwards."""
    model = build(name, **changes)
    before, forwards = addresses(model), [vars(module).get("forward") for module in model.modules()]
    plain = logits(model)
    switcher = ParallelSwitcher(model, max_width, TIMEOUT)
    found = {"widths": switcher.widths, "errors": {}, "nll": {1: nll(plain)}, "heads": switcher.plan.heads(max_width)}
    for width in switcher.widths[1:]:
        with switcher.at(width):
            scores = logits(model)
        found["errors"][width] = float((scores - plain).abs().max())
        found["nll"][width] = nll(scores)
    found["back"] = torch.equal(logits(model), plain)
    found["unmoved"] = addresses(model) == before
    found["forwards"] = [vars(module).get("forward") for module in model.modules()] == forwards
    found["flip"] = flip_seconds(switcher, max_width)
    views = [swap.parameters[name] for swap in switcher._overlays[max_width].swaps for name in swap.parameters]
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found["copied"] = sum(view.nbytes for view in views if view.untyped_storage().data_ptr() not in storages)
    return found


def switch_families() -> dict[str, dict]:
    found = {name: switch_family(name, 4) for name in NAMES}
    return found | {"uneven": switch_family("llama", 2, **UNEVEN)}


def generate(model, **kwargs) -> list:
    return model.generate(prompt(2, 100), max_new_tokens=8, min_new_tokens=8, **kwargs).tolist()


def patched_models() -> dict[str, list]:
    """Greedy text of a patched model at widths 1, 2 and 1; exact settings begin with that before a patch."""
    found = {}
    settings = {"exact": EXACT["all"], "s2o": LOSSY["s2o"], "innerq": LOSSY["innerq"]}
    for name, config in settings.items():
        model = build("llama")
        texts = [generate(model)] if name == "exact" else []
        hf_infeco.patch(model, config)
        texts.append(generate(model))
        switcher = ParallelSwitcher(model, 2, TIMEOUT)
        with switcher.at(2):
            texts.append(generate(model))
        found[name] = [*texts, generate(model)]
    return found


def sampling() -> list:
    model = build("llama")
    switcher = ParallelSwitcher(model, 2, TIMEOUT)
    torch.manual_seed(dist.get_rank())
    with switcher.at(2):
        merged = generate(model, do_sample=True)
    return [merged, generate(model, do_sample=True)]


def replaced_weights() -> tuple[str, int]:
    """What is said when a parameter was replaced after its views were built, and the width then."""
    model = build("llama")
    switcher = ParallelSwitcher(model, 2, TIMEOUT)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(model.model.layers[0].mlp.up_proj.weight.clone())
    return message_of(lambda: switcher.merge(2)), switcher.width


def disagreement() -> tuple[str, int]:
    switcher = ParallelSwitcher(build("llama"), 4, TIMEOUT)
    return message_of(lambda: switcher.merge(2 if dist.get_rank() else 4)), switcher.width


def refusals() -> dict[str, str]:
    few_heads = build("llama", num_key_value_heads=2)
    return {
        "too wide": message_of(lambda: ParallelSwitcher(few_heads, 4)),
        "no plan": message_of(lambda: ParallelSwitcher(contract_build("gpt2"), 2)),
        "latents": message_of(lambda: ParallelSwitcher(contract_build("deepseek_v3"), 2)),
        "processes": message_of(lambda: ParallelSwitcher(build("llama", num_key_value_heads=8), 3)),
        "width": message_of(lambda: ParallelSwitcher(few_heads, 2).flip(3)),
    }


def switcher_session() -> dict:
    """Everything about the switch by itself, in one group of processes: starting them is what costs."""
    return {
        "families": switch_families(),
        "patched": patched_models(),
        "sampling": sampling(),
        "replaced": replaced_weights(),
        "disagreement": disagreement(),
        "refusals": refusals(),
    }
