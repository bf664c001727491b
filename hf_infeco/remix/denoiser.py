"""One forward of any masked diffusion language model: what it takes, and which logits belong to which position."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..compat import CACHE_NAME, CACHE_NAMES, argument_names, is_causal_lm
from .canvas import Canvas
from .config import RemixConfig
from .masks import additive_mask


@dataclass(frozen=True)
class Adapter:
    """
    What differs between masked diffusion models.

    Args:
        shifted (`bool`): the logits at a position are of the token behind it (Dream).
        block_length (`int`, *optional*): a token sees no block of so many positions behind its own (LLaDA2).
        takes_masks (`bool`): the model takes additive masks `[B, 1, T, T]`; LLaDA's own code looks at no mask, so its
            prompts cannot be padded.
        takes_cache (`bool`): the model takes a `DynamicCache` of the tokens before those given.
    """

    shifted: bool = False
    block_length: int | None = None
    takes_masks: bool = True
    takes_cache: bool = False


def adapter_for(model: PreTrainedModel, config: RemixConfig) -> Adapter:
    """The adapter of a model that is known by its `model_type`; of any other that of plain masked diffusion."""
    match model.config.model_type:
        case "infeco_masked_diffusion":
            return Adapter(model.config.shifted_logits, model.config.block_length, takes_cache=True)
        case "llada" | "mmada":
            return Adapter(takes_masks=False)
        case "Dream" | "dream":
            return Adapter(shifted=True)
        case "llada2_moe":
            return Adapter(block_length=config.block_length, takes_cache=True)
    return Adapter()


class Denoiser:
    """
    Args:
        model (`PreTrainedModel`): a masked diffusion language model that takes `inputs_embeds`.
        adapter (`Adapter`, *optional*): for a model that `adapter_for` does not know.

    Raises:
        ValueError: for a model that this cannot be done with, with the reason.
    """

    def __init__(self, model: PreTrainedModel, config: RemixConfig, adapter: Adapter | None = None) -> None:
        check_model(model, adapter)
        self.model, self.config, self.adapter = model, config, adapter or adapter_for(model, config)
        self.arguments = argument_names(model.forward)
        self.cache_name = next((name for name in CACHE_NAMES if name in self.arguments), CACHE_NAME)
        self.mask_token_id = int(model.config.mask_token_id)
        self.weight = model.get_input_embeddings().weight.detach()
        self.cache: DynamicCache | None = None
        self.cached = 0  # columns in it
        length = self.adapter.block_length
        if length not in (None, config.block_length):
            raise ValueError(
                f"This model attends in blocks of {length}: use block_length={length}, not {config.block_length}."
            )
        if config.reuse_cache and not self.adapter.takes_cache:
            raise ValueError(
                f"reuse_cache=True: {type(model).__name__} takes no cache of finished tokens. Leave it out, or load "
                "the checkpoint with hf_infeco.remix.load_diffusion_lm."
            )

    def start(self, prompts: Tensor, attention_mask: Tensor | None) -> tuple[Canvas, Tensor]:
        """The canvas and its embeddings `[B, T, d]`."""
        is_block_causal = self.adapter.block_length is not None
        canvas = Canvas(prompts, attention_mask, self.mask_token_id, self.config, is_block_causal)
        if not self.adapter.takes_masks and not canvas.is_real.all():
            raise ValueError(
                f"{type(self.model).__name__} looks at no attention mask, so a padded batch would be wrong: pass "
                "prompts of one length, or load the checkpoint with hf_infeco.remix.load_diffusion_lm."
            )
        self.mask = None
        if self.adapter.takes_masks:
            self.mask = additive_mask(canvas.is_real, self.adapter.block_length, self.model.dtype)
        return canvas, self.weight[canvas.ids]

    def logits(self, canvas: Canvas, embeds: Tensor) -> tuple[Tensor, int]:
        """
        One forward: logits `[B, g, V]` of answer positions that hold at least all current blocks, and the first of
        these positions.
        """
        begin, end = 0, embeds.shape[1]
        if self.adapter.block_length is not None or self.config.reuse_cache:
            block_begin, block_end = canvas.columns(self.config.reuse_cache)
            end = block_end if self.adapter.block_length is not None else end
        if self.config.reuse_cache:
            # The column before a block holds the logits of its first position where logits are shifted.
            keep = max(block_begin - self.adapter.shifted, 0)
            begin = self._first_to_compute(keep)
        kwargs: dict[str, Any] = {"inputs_embeds": embeds[:, begin:end]}
        if self.mask is not None:
            kwargs["attention_mask"] = self.mask[:, :, begin:end, :end]
        if "position_ids" in self.arguments:
            kwargs["position_ids"] = canvas.positions[:, begin:end]
        if self.cache is not None:
            kwargs |= {self.cache_name: self.cache, "use_cache": True}
        first = max(begin + self.adapter.shifted, canvas.prompt_length)
        if "logits_to_keep" in self.arguments:
            kwargs["logits_to_keep"] = end - first + self.adapter.shifted
        logits = self.model(**kwargs).logits[:, first - end - self.adapter.shifted :]
        if self.cache is not None:
            self.cache.crop(keep - end)
            self.cached = keep
        return logits[:, : end - first], first - canvas.prompt_length

    def _first_to_compute(self, keep: int) -> int:
        """The first column that is not in the cache, of which `keep` columns are to be there after this forward."""
        if self.cache is None or (keep != self.cached and self.adapter.block_length is None):
            # A block is finished, and whoever saw its masks has other keys now: everything is computed again.
            self.cache, self.cached = DynamicCache(), 0
        return self.cached


def check_model(model: PreTrainedModel, adapter: Adapter | None) -> None:
    """
    Raises:
        ValueError: for a model that is known to be no masked diffusion language model, with the reason.
    """
    name, config = type(model).__name__, model.config
    if config.model_type.startswith("diffusion_gemma"):
        raise ValueError(
            f"{name} diffuses from random tokens and has no mask token, so nothing can be mixed with one: use its own "
            "generate() in transformers."
        )
    if adapter is None and is_causal_lm(config):
        raise ValueError(
            f"{name} is a causal language model: each of its tokens sees only those before it, and it was not trained "
            "to fill in masks. ReMix needs a masked diffusion model such as LLaDA, Dream or MaskedDiffusionLM."
        )
    if getattr(config, "mask_token_id", None) is None:
        raise ValueError(
            f"{name}'s config names no mask_token_id: set model.config.mask_token_id to the token that stands for an "
            "undecided position."
        )
    if "inputs_embeds" not in argument_names(model.forward):
        raise ValueError(f"{name}.forward takes no inputs_embeds, in which undecided positions are mixed.")
