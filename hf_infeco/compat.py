"""
The only file that knows versions or private names of transformers.

`docs/compat.md` lists what changed when. Everything here is checked by `make compat` against the oldest supported, a
middle and the newest tested version.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    cache_utils,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import logging

logger = logging.get_logger(__name__)

OLDEST, NEWEST_TESTED = Version("5.4.0"), Version("5.24.0")
FLYING_OLDEST = Version("5.23.0")  # 5.18 cannot gather uneven parts, and refuses a plain forward beside a paged cache
INSTALLED = Version(transformers.__version__)
CROP_TAKES_A_DIFFERENCE = "tokens_to_remove" in inspect.signature(DynamicLayer.crop).parameters
SDPA_TAKES_POSITION_BIAS = "position_bias" in inspect.signature(sdpa_attention_forward).parameters
CROP_REFUSES_A_LENGTH = Version("5.18.0") <= INSTALLED

CACHE_NAMES = ("cache", "past_key_values")  # of a model's argument and output: since 5.24, and before

PREPARE_CACHE = "_prepare_cache_for_generation"  # the method in which generate() makes a cache
CONTINUOUS_BATCHING = "init_continuous_batching"  # the method in which a model makes its engine
_PREPARE_ARGUMENTS = ["generation_config", "model_kwargs", "generation_mode", "batch_size", "max_cache_length"]


@functools.cache
def check_version() -> None:
    """Raises on a transformers older than supported; warns once on one newer than tested."""
    if INSTALLED < OLDEST:
        raise ImportError(
            f"transformers {INSTALLED} is too old: hf_infeco needs {OLDEST} or newer. "
            "Run `pip install -U transformers`."
        )
    if INSTALLED > NEWEST_TESTED:
        logger.warning(
            f"transformers {INSTALLED} is newer than {NEWEST_TESTED}, the newest version hf_infeco was tested with. "
            "If something is off, run hf_infeco's contract tests (`make compat`) or install the tested version."
        )


# ---------------------------------------------------------------- configs and models


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The decoder's config inside a composite one (vision-language models), else the config itself."""
    return config.get_text_config(decoder=True)


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """
    The module that holds the decoder's layers: `model.model` of a causal LM, the language model of a composite one.
    """
    decoder = model.get_decoder()
    # Some heads are called decoder too.
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model


def makes_its_own_cache(model: PreTrainedModel) -> bool:
    """Whether the model insists on a cache class of its own, which no other may replace."""
    supports_default = getattr(model, "_supports_default_dynamic_cache", None)
    return supports_default is not None and not supports_default()


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """
    The model of a config without its weights: modules to look at, on the meta device. Of a composite model that
    cannot be built, because its vision tower asks for another package say, it is the language model alone.

    Raises:
        ValueError: if transformers cannot build a model from this config, with its reason.
    """
    with_head = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM)
    auto_class = next((auto for auto in with_head if type(config) in auto._model_mapping), AutoModel)
    try:
        with torch.device("meta"):
            # A model may change its config.
            return auto_class.from_config(copy.deepcopy(config))
    except Exception as error:
        if (text := text_config(config)) is not config:
            return skeleton(text)
        reason = " ".join(str(error).split())
        raise ValueError(f"transformers cannot build a model from this config: {reason}") from error


def is_causal_lm(config: PreTrainedConfig) -> bool:
    """Whether transformers builds a causal language model from this config, and the config does not deny it."""
    return type(config) in AutoModelForCausalLM._model_mapping and getattr(config, "is_causal", True)


def attention_name(decoder: PreTrainedModel) -> str:
    """The attention implementation that the decoder is set to, such as "sdpa"."""
    return decoder.config._attn_implementation


def can_switch_attention(decoder: PreTrainedModel) -> bool:
    """Whether the model's code asks transformers' attention registry; others ignore `set_attn_implementation`."""
    return decoder._can_set_attn_implementation()


def self_attention(decoder: nn.Module) -> list[nn.Module]:
    """All self-attention modules. A layer may have several, or none that says which layer it is of."""
    named = ((type(module).__name__, module) for module in decoder.modules())
    return [module for name, module in named if "Attention" in name and "CrossAttention" not in name]


def attention_modules(decoder: nn.Module) -> dict[int, nn.Module]:
    """Self-attention modules by layer index. Hybrid layers may share one that has no index of its own (Zamba)."""
    numbered = [(getattr(module, "layer_idx", None), module) for module in self_attention(decoder)]
    modules = {index: module for index, module in numbered if isinstance(index, int) and index >= 0}
    shared = [module for index, module in numbered if index in (None, -1)]
    if shared:
        types = getattr(decoder.config, "layer_types", None) or []
        modules |= {index: shared[0] for index, kind in enumerate(types) if kind == "hybrid" and index not in modules}
    return modules


def layer_config(config: PreTrainedConfig, index: int) -> PreTrainedConfig:
    """What holds for one decoder layer. A config whose layers differ refuses to be asked for all of them at once."""
    config = text_config(config)
    return config.per_layer_config[index] if getattr(config, "is_heterogeneous", False) else config


def slices_masks(config: PreTrainedConfig | None) -> bool:
    """Whether a model cuts queries off its masks, which have to be 4-D then: those that share keys between layers."""
    return bool(getattr(config, "num_kv_shared_layers", None))


def config_value(config: PreTrainedConfig, name: str) -> Any:
    """A field of the decoder's config, None where it has none; a list where the field differs by layer."""
    config = text_config(config)
    if name in (getattr(config, "per_layer_attributes", None) or ()):
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    return getattr(config, name, None)


def caches_latents(config: PreTrainedConfig) -> bool:
    """Whether a layer has multi-head latent attention, which caches what it compresses by itself."""
    rank = config_value(config, "kv_lora_rank")
    return any(rank) if isinstance(rank, list) else bool(rank)


def layer_type(config: PreTrainedConfig, index: int) -> str | None:
    """Such as "full_attention" or "sliding_attention"; None where the config does not tell layers apart."""
    types = getattr(text_config(config), "layer_types", None)
    return types[index] if types and index < len(types) else None


def query_heads(config: PreTrainedConfig, index: int) -> int:
    """Query heads of a layer."""
    return getattr(layer_config(config, index), "num_attention_heads", 0)


def window_of(config: PreTrainedConfig, index: int) -> int | None:
    """Tokens that a layer of sliding or chunked attention sees."""
    config = layer_config(config, index)
    return getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)


def max_positions(config: PreTrainedConfig) -> int | None:
    """The longest sequence that a model was made for; None where its config does not say."""
    limit = getattr(text_config(config), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def key_value_dims(
    config: PreTrainedConfig, index: int = 0, attention: nn.Module | None = None
) -> tuple[int, int, int]:
    """
    KV heads, key head dim and value head dim of what layer `index` caches, as the config promises them; tensors have
    the last word. `attention` tells whether multi-head latent attention caches the latent or what it expands that to.
    """
    config = layer_config(config, index)
    heads = getattr(config, "num_attention_heads", 0)
    if heads == 0:
        return 0, 0, 0  # a model without attention, whose default cache may say otherwise in older versions
    if getattr(config, "kv_lora_rank", None):
        if hasattr(attention, "expand_kv"):
            return 1, config.kv_lora_rank, config.qk_rope_head_dim
        return heads, config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return kv_heads, head_dim, head_dim


class CrossAttentionLayer(DynamicLayer):
    """The cache of a layer that attends to an image: plain, but it does not grow with the text."""


def default_layers(config: PreTrainedConfig) -> list[Any]:
    """The cache layers that transformers would build for this config, one per decoder layer; none if it cannot."""
    config = text_config(config)
    if not hasattr(config, "num_hidden_layers"):
        return []
    layers = DynamicCache(config=config).layers
    for index in getattr(config, "cross_attention_layers", None) or []:
        layers[index] = CrossAttentionLayer()
    return layers


def is_full_attention_layer(layer: Any) -> bool:
    """Whether a cache layer is the plain growing one. Sliding, linear, indexed, hybrid and shared layers are not."""
    return type(layer) is DynamicLayer


def is_window_layer(layer: Any) -> bool:
    """Whether a cache layer holds keys and values of the newest tokens, or of an image."""
    return type(layer) in (DynamicSlidingWindowLayer, CrossAttentionLayer)


def is_placeholder_layer(layer: Any) -> bool:
    """Whether a cache layer holds nothing: its decoder layer reads another one's keys (5.20 and later)."""
    return isinstance(layer, getattr(cache_utils, "DummyLayer", ()))


# ---------------------------------------------------------------- tensor parallelism


def require_flying() -> None:
    """
    Raises:
        ImportError: on a transformers without the continuous batching that the switch of widths builds on.
    """
    if INSTALLED < FLYING_OLDEST:
        raise ImportError(
            f"transformers {INSTALLED} is too old to switch widths: hf_infeco.flying needs {FLYING_OLDEST} or newer, "
            "whose continuous batching it builds on. Run `pip install -U transformers`; the rest works as it is."
        )


def parallel_styles() -> Any:
    """transformers' registry of tensor parallel styles by name."""
    import transformers.distributed.tensor_parallel as styles  # registers them; absent before 5.18

    return styles.ALL_PARALLEL_STYLES


def tensor_parallel_plan(model: PreTrainedModel) -> dict[str, str]:
    """Style by name of a module or a parameter, in which `*` stands for a layer's number; empty for no plan."""
    return dict(getattr(model, "tp_plan", None) or {})


def kv_views(allocator: Any, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[rows, heads, head_dim]` of a layer in the pool of continuous batching, from an allocator."""
    return allocator._kv_token_views[layer]


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether transformers has split the model over processes when it loaded it."""
    return getattr(model, "_device_mesh", None) is not None or bool(getattr(model, "_tp_size", None))


# ---------------------------------------------------------------- caches


def argument_names(function: Callable) -> tuple[str, ...]:
    """Names of a function's arguments, `self` included."""
    return tuple(inspect.signature(function).parameters)


def cache_argument(function: Callable) -> str:
    """What a function of a model, such as its class's forward, calls the cache that it takes."""
    return next((name for name in CACHE_NAMES if name in argument_names(function)), CACHE_NAMES[-1])


# What the installed transformers calls a cache: as an argument of generate, and in what a model returns.
CACHE_NAME = cache_argument(GenerationMixin.prepare_inputs_for_generation)


def tokens_to_remove(argument: int, length: int) -> int:
    """
    How many tokens `crop(argument)` removes from a cache of `length` tokens.

    A negative argument always was minus that number. A positive one is the length to keep, refused since 5.18. Zero
    keeps no token where the argument is still called a length, and removes none since it is called a difference.
    """
    if argument < 0:
        return min(-argument, length)
    if argument > 0 and CROP_REFUSES_A_LENGTH:
        raise ValueError(
            f"crop({argument}): transformers {INSTALLED} takes minus the number of tokens to remove. "
            f"To keep {argument} of {length} tokens call crop({min(argument - length, 0)})."
        )
    if argument == 0 and CROP_TAKES_A_DIFFERENCE:
        return 0
    return max(length - argument, 0)


class PrepareCache:
    """
    Stands in for one model's `PREPARE_CACHE`: `generate` uses our cache where it would have made an empty
    `DynamicCache` because the user chose nothing, or chose "offloaded". A cache that the user passes, and any other
    `cache_implementation`, are left alone. An object, because a bound partial cannot be pickled.

    Args:
        new_cache: `new_cache(model, default)` returns the cache to use in place of the empty `default`; a module-level
            function, so that a pickle of the model carries it along.

    Raises:
        RuntimeError: if the installed transformers calls that method differently.
    """

    def __init__(self, model: PreTrainedModel, new_cache: Callable[[PreTrainedModel, Cache], Cache]):
        signature = inspect.signature(getattr(type(model), PREPARE_CACHE))
        takes_anything = any(each.kind is each.VAR_POSITIONAL for each in signature.parameters.values())
        if list(signature.parameters)[1:6] != _PREPARE_ARGUMENTS and not takes_anything:
            raise RuntimeError(
                f"{type(model).__name__}.{PREPARE_CACHE}{signature} is not the method hf_infeco knows. Report this "
                f"transformers version; until then call generate({CACHE_NAME}=hf_infeco.InnerQCache(model.config))."
            )
        self.model, self.new_cache = model, new_cache

    def __call__(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        given = model_kwargs.get(CACHE_NAME)
        getattr(type(self.model), PREPARE_CACHE)(self.model, generation_config, model_kwargs, *args, **kwargs)
        made = model_kwargs.get(CACHE_NAME)
        # "dynamic_full" is what older versions choose by themselves for assisted decoding.
        is_default = generation_config.cache_implementation in (None, "offloaded", "dynamic_full")
        if given is not None or not is_default or made is None or type(made) is not DynamicCache:
            return
        cache = self.new_cache(self.model, made)
        if not made.layers:
            # There sliding layers could not be rolled back, so such a cache starts without layers, to be filled with
            # plain ones that keep every token.
            cache.layers = [DynamicLayer() if layer.is_sliding else layer for layer in cache.layers]
        # An assistant's cache is rolled back. Layers that cannot do so by themselves record for it, from 5.18 on.
        if getattr(generation_config, "is_assistant", False) and hasattr(cache, "activate_past_recording"):
            cache.activate_past_recording()
        model_kwargs[CACHE_NAME] = cache


def offloading_of(cache: Cache) -> dict[str, bool]:
    """The offloading arguments a cache was made with, for making another like it."""
    if not cache.offloading:
        return {}
    return {"offloading": True, "offload_only_non_sliding": cache.only_non_sliding}


# ---------------------------------------------------------------- the steps of generate


def prefill(
    model: PreTrainedModel, input_ids: torch.Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
) -> Any:
    """Runs the prompts, in chunks where the generation config asks for them; returns the model's output."""
    return model._prefill(input_ids, generation_config, model_kwargs)


def repeat_inputs(
    model: PreTrainedModel, input_ids: torch.Tensor, times: int, model_kwargs: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Each row `times` times, in `input_ids` and in all that goes with them."""
    return model._expand_inputs_for_generation(
        input_ids=input_ids, expand_size=times, is_encoder_decoder=model.config.is_encoder_decoder, **model_kwargs
    )


def reordered_cache(model: PreTrainedModel, cache: Any, rows: torch.Tensor) -> Any:
    """The cache whose rows are those named in `rows`, by the model's own way where it has one."""
    if hasattr(model, "_reorder_cache"):
        return model._reorder_cache(cache, rows)
    cache.reorder_cache(rows)
    return cache


def next_model_kwargs(model: PreTrainedModel, outputs: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the next step, after one that returned `outputs`."""
    return model._update_model_kwargs_for_generation(
        outputs, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
    )
