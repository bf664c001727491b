"""One model call after another for a search of ours: prompts, their beams, the cache, and which tokens are scored."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel

from . import compat
from .edits import Edits


class Forward:
    """
    Calls a model within `generate(custom_generate=...)`. The prompts are read once, before there are beams.

    Args:
        model_kwargs (`dict`): what `generate` prepared, with the cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ):
        self.model, self.input_ids = model, input_ids
        self.config, self.model_kwargs = generation_config, model_kwargs

    def prompts(self, tokens: torch.Tensor | None) -> torch.Tensor:
        """Logits behind each prompt, float32 `[B, tokens]`; None scores the whole vocabulary."""
        with _scoring(self.model, tokens):
            return self._logits(compat.prefill(self.model, self.input_ids, self.config, self.model_kwargs), tokens)

    def beams(self, tokens: torch.Tensor | None) -> torch.Tensor:
        """Logits behind each beam's last token, float32 `[B * beams, tokens]`."""
        inputs = self.model.prepare_inputs_for_generation(
            self.input_ids, next_sequence_length=1 if self.model_kwargs["use_cache"] else None, **self.model_kwargs
        )
        with _scoring(self.model, tokens):
            return self._logits(self.model(**inputs, return_dict=True), tokens)

    def open_beams(self, num_beams: int) -> None:
        """From one row per prompt to one per beam."""
        self.input_ids, self.model_kwargs = compat.repeat_inputs(
            self.model, self.input_ids, num_beams, self.model_kwargs
        )
        if (cache := self._cache) is not None:
            cache.batch_repeat_interleave(num_beams)

    def choose(self, rows: torch.Tensor, token: torch.Tensor) -> None:
        """Every row goes on from the row named in `rows [R]`, with one more `token [R]`."""
        self.input_ids = torch.cat([self.input_ids[rows], token[:, None]], dim=1)
        if (cache := self._cache) is not None:
            self.model_kwargs[compat.CACHE_NAME] = compat.reordered_cache(self.model, cache, rows)

    @property
    def _cache(self) -> Any:
        return self.model_kwargs.get(compat.CACHE_NAME) if self.model_kwargs["use_cache"] else None

    def _logits(self, outputs: Any, tokens: torch.Tensor | None) -> torch.Tensor:
        self.model_kwargs = compat.next_model_kwargs(self.model, outputs, self.model_kwargs)
        logits = outputs.logits[:, -1]
        if tokens is not None and logits.shape[1] != len(tokens):
            logits = logits[:, tokens]  # the head is none that rows can be taken from
        return logits.float()


@contextmanager
def _scoring(model: PreTrainedModel, tokens: torch.Tensor | None) -> Iterator[None]:
    """
    Has this model's head compute only some tokens' logits. What a model does behind it, scaling or capping, it does
    to each logit alone.
    """
    head = model.get_output_embeddings()
    edits = Edits()
    if tokens is not None and type(head) is nn.Linear and "forward" not in vars(head):
        edits.set_attribute(head, "forward", functools.partial(_rows_of_linear, head, tokens))
    try:
        yield
    finally:
        edits.undo()


def _rows_of_linear(head: nn.Linear, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    low, high = int(tokens[0]), int(tokens[-1]) + 1
    rows = slice(low, high) if high - low == len(tokens) else tokens  # a slice copies no weights
    return F.linear(hidden, head.weight[rows], None if head.bias is None else head.bias[rows])
