"""`generate`: fill in an answer block by block, a step per forward."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from .config import RemixConfig
from .denoiser import Adapter, Denoiser
from .filling import Filling, RemixOutput

KNOWN_CRITERIA = (MaxLengthCriteria, EosTokenCriteria)  # the answer has a length of its own


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    config: RemixConfig | None = None,
    *,
    attention_mask: Tensor | None = None,
    allowed_tokens: Tensor | None = None,
    adapter: Adapter | None = None,
    streamer: BaseStreamer | None = None,
    return_states: bool = False,
) -> RemixOutput:
    """
    Answers by masked diffusion, with mixing states (ReMix, arXiv 2602.22868) or one of the strategies it is compared
    with. Rows do not wait for each other, and each is answered as it would be alone, except with `reuse_cache`.

    Args:
        model (`PreTrainedModel`): a masked diffusion language model that takes `inputs_embeds` and whose config names
            a `mask_token_id`.
        input_ids (`torch.Tensor` of int64, `[B, P]`): prompts, padded on the left.
        config (`RemixConfig`, *optional*): lengths, strategy and thresholds.
        attention_mask (`torch.Tensor`, `[B, P]`, *optional*): 0 for padding.
        allowed_tokens (`torch.Tensor` of bool, `[max_new_tokens, V]` or `[B, max_new_tokens, V]`, *optional*): the
            legal tokens of every position; probabilities are among these. The mask token never is.
        adapter (`Adapter`, *optional*): how to call a model that is none of LLaDA, MMaDA, LLaDA2, Dream or
            `MaskedDiffusionLM`, if its logits are shifted, its attention is block-causal or it ignores masks.
        streamer (`BaseStreamer`, *optional*): gets the prompt, then each finished block; drafts too if it has
            `put_draft`. One row only.
        return_states (`bool`, defaults to `False`): keep every step for plots.

    Raises:
        ValueError: for a model, prompt or constraint that this cannot work with, with the reason.
    """
    denoiser = Denoiser(model, config or RemixConfig(), adapter)
    filling = Filling(denoiser, input_ids, attention_mask, allowed_tokens)
    if streamer is not None:
        streamer.put(input_ids.cpu())
    return filling.run(streamer, return_states)


@torch.no_grad()
def remix_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    remix: RemixConfig | None = None,
    allowed_tokens: Tensor | None = None,
    return_states: bool = False,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> RemixOutput | Tensor:
    """
    `generate` as `model.generate(input_ids, custom_generate=remix_generate, remix=RemixConfig())`; returns the
    sequences, or with `return_dict_in_generate=True` a `RemixOutput`.
    """
    others = [type(entry).__name__ for entry in logits_processor]
    others += [type(entry).__name__ for entry in stopping_criteria if not isinstance(entry, KNOWN_CRITERIA)]
    if others:
        raise ValueError(
            f"{others} look at text from left to right, and ReMix decides tokens in any order: switch them off; "
            "allowed_tokens= restricts positions, RemixConfig.temperature samples."
        )
    denoiser = Denoiser(model, remix or RemixConfig())
    filling = Filling(denoiser, input_ids, model_kwargs.get("attention_mask"), allowed_tokens)
    output = filling.run(streamer, return_states)
    return output if generation_config.return_dict_in_generate else output.sequences
