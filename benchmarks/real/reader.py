"""The model, its tokenizer, and the English text that it reads."""

from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache

from hf_infeco import CACHE_NAME

from .ways import Way

# Chapters of the Python language reference that do not contain one another: prose, with examples in between.
CHAPTERS = ("specialnames", "compound", "types", "debugger", "execmodel", "import", "formatstrings", "string-methods")


class Reader:
    """A causal model in bfloat16 with its tokenizer and `text` `[num_tokens]`."""

    def __init__(self, model: str | Path, device: str):
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval().to(device)
        self.start = self.tokenizer("")["input_ids"]  # what the model expects before any text
        self.text = torch.tensor(self.encode("\n\n".join(topics[name] for name in CHAPTERS if name in topics)))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def prompt(self, ids: Iterable[int]) -> torch.Tensor:
        """`ids` behind what the model expects before them, on its device."""
        return torch.tensor([*self.start, *ids], device=self.model.device)

    def windows(self, seq_len: int, count: int) -> list[torch.Tensor]:
        """`count` windows `[seq_len]` evenly spread over the text."""
        length = seq_len - len(self.start)
        starts = torch.linspace(0, len(self.text) - length, count).long().tolist()
        return [self.prompt(self.text[start : start + length].tolist()) for start in starts]

    @torch.no_grad()
    def read(self, way: Way, ids: torch.Tensor) -> Cache:
        """The exact keys and values of `ids [n]`, read as `way` reads."""
        cache = DynamicCache(config=self.model.config)
        with Way(way.s2o).at_work(self.model):
            self.model(ids[None], **{CACHE_NAME: cache}, logits_to_keep=1)
        return cache

    def read_by_each(self, ways: dict[str, Way], ids: torch.Tensor) -> dict[str, Cache]:
        """`read`, once for all the ways that read alike."""
        distinct = {way.s2o: way for way in ways.values()}
        read = {s2o: self.read(way, ids) for s2o, way in distinct.items()}
        return {name: read[way.s2o] for name, way in ways.items()}

    @torch.no_grad()
    def go_on(self, way: Way, cache: Cache, ids: torch.Tensor, piece: int) -> torch.Tensor:
        """Logits `[m, V]` after each of `ids [m]`, fed `piece` tokens at a time behind what `cache` holds."""
        with way.at_work(self.model):
            return torch.cat([self.model(part[None], **{CACHE_NAME: cache}).logits[0] for part in ids.split(piece)])
