"""`MaskedDiffusionLM`: a Llama that attends in both directions, or block by block, and fills in masks."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..compat import CACHE_NAME
from .masks import additive_mask, positions_of


class MaskedDiffusionConfig(LlamaConfig):
    """
    A `LlamaConfig` and how the model diffuses.

    Args:
        mask_token_id (`int`): token of a position that is not decided.
        block_length (`int`, *optional*): with it attention is block-causal: a token sees its own block of so many
            positions and those before, as LLaDA2 does. Without it every token sees every other.
        shifted_logits (`bool`, defaults to `False`): the logits at a position are of the token behind it, as those of
            Dream are, which was a causal model.
    """

    model_type = "infeco_masked_diffusion"

    mask_token_id: int | None = None
    block_length: int | None = None
    shifted_logits: bool = False
    is_causal: bool = False


class MaskedDiffusionLM(LlamaForCausalLM):
    """
    Llama's layers with attention in both directions, for masked diffusion.

    `forward` is that of `LlamaForCausalLM` with labels left out: the logits at a position are of its own token, unless
    the config says `shifted_logits`. A cache holds finished tokens before the ones given.
    """

    config_class = MaskedDiffusionConfig
    # Both build a mask of their own from a 2-D one and cannot take the one made here.
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: MaskedDiffusionConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.is_causal = False

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        Args:
            input_ids (int64, `[B, T]`) or inputs_embeds (`[B, T, d]`): tokens behind those in the cache.
            attention_mask (`[B, cached + T]`, *optional*): 0 for padding; 4-D additive masks are used as they are.
            position_ids (int64, `[B, T]`, *optional*): places of the tokens, counted from each row's first real one
                by default.
        """
        cache = kwargs.get(CACHE_NAME)
        cached = 0 if cache is None else cache.get_seq_length()
        if attention_mask is None:
            given: Any = input_ids if inputs_embeds is None else inputs_embeds
            attention_mask = torch.ones(given.shape[0], cached + given.shape[1], dtype=torch.bool, device=given.device)
        if attention_mask.ndim == 2:
            is_real = attention_mask.bool()
            if position_ids is None:
                position_ids = positions_of(is_real)[:, cached:]
            attention_mask = additive_mask(is_real, self.config.block_length, self.dtype)[:, :, cached:]
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            logits_to_keep=logits_to_keep,
            **{"use_cache": cache is not None, **kwargs},
        )

    def generate(self, *args: Any, custom_generate: Any = None, **kwargs: Any) -> Any:
        """That of transformers, for `custom_generate=hf_infeco.remix.remix_generate`; its own decodes causally."""
        if custom_generate is None:
            raise ValueError(
                "A masked diffusion model does not decode from left to right: call hf_infeco.remix.generate(model, "
                "input_ids, RemixConfig()), or generate(..., custom_generate=hf_infeco.remix.remix_generate)."
            )
        return super().generate(*args, custom_generate=custom_generate, **kwargs)


AutoConfig.register(MaskedDiffusionConfig.model_type, MaskedDiffusionConfig)
AutoModel.register(MaskedDiffusionConfig, MaskedDiffusionLM)
AutoModelForMaskedLM.register(MaskedDiffusionConfig, MaskedDiffusionLM)
