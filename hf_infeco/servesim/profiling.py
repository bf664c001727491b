"""
Measures a transformers model on this device and writes the tables of a profile.

What sees each token (projections, MLP, norms) is timed module by module. Attention, with its cache, is what a whole
forward takes beyond that, so that a patched model's attention and cache are measured as they run. transformers
computes prompts and decoding in separate forwards; rows with both are the sum of the two.
"""

import copy
import datetime
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..compat import CACHE_NAME
from ..kernels.devices import describe_device
from .profiles import with_sums, write_profile
from .tables import sum_of_curves


@dataclass(frozen=True)
class Grid:
    """
    What is measured: each axis in steps of `factor`, from the smallest on.

    Args:
        max_tokens: of a step.
        max_kv: tokens in the cache before a step.
        max_seqs: that decode together.
        factor: between two points of an axis.
        repeats: of each timing, of which the median counts.
    """

    max_tokens: int = 1024
    max_kv: int = 4096
    max_seqs: int = 16
    factor: int = 4
    repeats: int = 3

    def axis(self, first: int, last: int) -> list[int]:
        points = [first]
        while points[-1] * self.factor < last:
            points.append(points[-1] * self.factor)
        return points if points[-1] >= last else [*points, last]


def profile_model(
    build: Callable[[int], Any], widths: tuple[int, ...], folder: Path, grid: Grid, meta: dict[str, Any]
) -> None:
    """
    Measures and writes a profile. A run that was cut off goes on with the next point.

    Args:
        build: from a width to a causal LM that is one rank of it.
        widths: tensor parallel widths.
        folder: of the profile.
        grid: points.
        meta: what `meta.yaml` says about the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = Points(folder / "points.jsonl")
    tables, device = {}, ""
    for width in widths:
        model = build(width)
        device = describe_device(model.device)
        tables[width] = measure(model, grid, done, width)
    about = {"gpu": device, "profiled_at": datetime.date.today().isoformat(), "tp_degrees": list(widths), **meta}
    write_profile(folder, about, tables)
    done.path.unlink(missing_ok=True)


class Points:
    """Measured seconds by name, one a line of a file: what was measured before is not measured again."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        self.seconds: dict[str, float] = dict(json.loads(line) for line in lines)

    def once(self, name: str, measure: Callable[[], float]) -> float:
        if name not in self.seconds:
            self.seconds[name] = measure()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, self.seconds[name]]) + "\n")
        return self.seconds[name]


@torch.inference_mode()
def measure(model: Any, grid: Grid, done: Points, width: int) -> dict[str, list[dict[str, Any]]]:
    """The tables of one width."""
    layers, config = model.model.layers, model.config.get_text_config()
    tokens, sequences = grid.axis(1, grid.max_tokens), grid.axis(1, grid.max_seqs)
    dense, head = [], []
    for count in tqdm(tokens, desc=f"tp{width}, dense"):
        for name, module, size in dense_modules(model):
            seconds = done.once(f"tp{width} {name} {count}", partial(_time, module, size, count, grid))
            dense.append({"layer": name, "tokens": count, "time_us": 1e6 * seconds})
    for count in tqdm(sequences, desc=f"tp{width}, head"):
        run = partial(_time, model.lm_head, config.hidden_size, count, grid)
        seconds = done.once(f"tp{width} lm_head {count}", run)
        head.append({"layer": "lm_head", "sequences": count, "time_us": 1e6 * seconds})
    known = sum_of_curves(dense, "tokens", len(layers))  # but for lm_head, which `model.model` leaves out
    attention: dict[tuple[int, int, int, int], float] = {}
    for batch, new, before in tqdm(list(_forwards(grid)), desc=f"tp{width}, attention"):
        run = partial(_time_forward, model, batch, new, before, grid)
        seconds = done.once(f"tp{width} forward {batch} {new} {before}", run)
        rest = max(seconds - known(batch * new), 0.0) / len(layers)
        attention[(new, before, 0, 0) if new > 1 else (0, 0, batch, before)] = rest
    return {"dense": dense, "per_sequence": head, "attention": with_sums(attention)}


def dense_modules(model: Any) -> Iterator[tuple[str, nn.Module, int]]:
    """
    Name, module and input size of what sees each token, of one layer and of the model.

    Raises:
        ValueError: the model is laid out in another way.
    """
    decoder = model.model
    layer = decoder.layers[0]
    try:
        attention, mlp = layer.self_attn, layer.mlp
        norms = layer.input_layernorm, layer.post_attention_layernorm
    except AttributeError as error:
        raise ValueError(f"{type(model).__name__} cannot be profiled: {error}") from None
    hidden = model.config.get_text_config().hidden_size
    yield "embedding", decoder.embed_tokens, 0
    yield "final_layernorm", decoder.norm, hidden
    for name, module in zip(("input_layernorm", "post_layernorm"), norms):
        yield name, module, hidden
    for name, module in attention.named_modules():
        if isinstance(module, nn.Linear):
            yield name.replace(".", "_"), module, module.in_features
    yield "mlp", mlp, hidden


def _time(module: nn.Module, size: int, tokens: int, grid: Grid) -> float:
    weight = next(module.parameters())
    if size:
        given = torch.randn(1, tokens, size, dtype=weight.dtype, device=weight.device)
    else:
        given = torch.zeros(1, tokens, dtype=torch.int64, device=weight.device)
    return _median(lambda: lambda: module(given), weight.device, grid.repeats)


def _time_forward(model: Any, batch: int, new: int, before: int, grid: Grid) -> float:
    """A forward of `new` tokens a row on a cache of `before`; the cache is made anew each time."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (batch, before + new), device=model.device)
    filled = getattr(model.model(ids[:, :before], use_cache=True), CACHE_NAME) if before else None

    def ready() -> Callable[[], Any]:
        cache = copy.deepcopy(filled)
        return lambda: model.model(ids[:, before:], **{CACHE_NAME: cache}, use_cache=True)

    return _median(ready, model.device, grid.repeats)


def _median(ready: Callable[[], Callable[[], Any]], device: torch.device, repeats: int) -> float:
    """Median seconds of what `ready` makes outside the time; a first run is not counted."""
    taken = []
    for _ in range(repeats + 1):
        run = ready()
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forwards(grid: Grid) -> Iterator[tuple[int, int, int]]:
    """(rows, new tokens of each, tokens before): chunks of one prompt, and steps of sequences that decode."""
    for before in (0, *grid.axis(64, grid.max_kv)):
        for chunk in grid.axis(16, grid.max_tokens):
            yield 1, chunk, before
        if before:
            for count in grid.axis(1, grid.max_seqs):
                yield count, 1, before
