"""Tiny random models of the families that hf_infeco promises to serve, and what it promises on each."""

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

VOCAB, PAD = 101, 0
DEVICE = os.environ.get("HF_INFECO_TEST_DEVICE", "cpu")  # `make gpu` runs the suite on CUDA

TINY = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=4096,
    initializer_range=0.15,  # wide enough that logits differ and greedy choices mean something
    tie_word_embeddings=False,  # tied random embeddings make a model repeat its last token
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=None,
)
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=48)
WINDOW = 16


@dataclass(frozen=True)
class Family:
    """
    Attributes:
        config (`str`): config class; the causal LM is the one that transformers maps to it.
        changes (`dict`): fields that differ from `TINY`; a value of None drops the field.
        s2o, innerq (`set[str]`): promised statuses of the report's lines.
        attention (`str`): the implementation to compare with.
    """

    config: str
    changes: dict
    s2o: frozenset[str] = frozenset({"enabled"})
    innerq: frozenset[str] = frozenset({"enabled"})
    attention: str | None = None


def promise(*statuses: str) -> frozenset[str]:
    return frozenset(statuses)


MIXED = promise("enabled", "unsupported")  # full-attention layers gain, sliding ones stay
NOTHING = promise("unsupported")

FAMILIES = {
    "llama": Family("LlamaConfig", {}),
    "mistral": Family("MistralConfig", dict(sliding_window=WINDOW), s2o=NOTHING, innerq=NOTHING),
    "mistral_full": Family("MistralConfig", dict(sliding_window=None)),
    "qwen2": Family("Qwen2Config", {}),
    "qwen3": Family("Qwen3Config", {}),
    "qwen3_moe": Family("Qwen3MoeConfig", dict(num_experts=4, **EXPERTS)),
    "mixtral": Family("MixtralConfig", dict(num_local_experts=4, num_experts_per_tok=2)),
    "gemma2": Family(
        "Gemma2Config",
        dict(sliding_window=WINDOW, query_pre_attn_scalar=32, attn_logit_softcapping=20.0),
        s2o=NOTHING,
        innerq=MIXED,
        attention="eager",  # before 5.18 or so, transformers' sdpa leaves the cap out without a word
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        dict(
            sliding_window=WINDOW,
            query_pre_attn_scalar=32,
            num_hidden_layers=3,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ),
        s2o=MIXED,
        innerq=MIXED,
    ),
    "phi3": Family("Phi3Config", dict(head_dim=None, hidden_size=128)),
    "smollm3": Family("SmolLM3Config", {}),
    "olmo2": Family("Olmo2Config", dict(head_dim=None, hidden_size=128)),
    "granite": Family("GraniteConfig", dict(head_dim=None, hidden_size=128, attention_multiplier=0.2)),
    "gpt_oss": Family(
        "GptOssConfig",
        dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW),
        s2o=MIXED,
        innerq=MIXED,
    ),
    "deepseek_v3": Family(
        "DeepseekV3Config",
        dict(
            head_dim=None,
            num_key_value_heads=4,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            kv_lora_rank=32,
            q_lora_rank=32,
            qk_nope_head_dim=32,
            qk_rope_head_dim=32,
            v_head_dim=48,
            **EXPERTS,
        ),
        innerq=NOTHING,
    ),
    "gpt_neox": Family(
        "GPTNeoXConfig", dict(head_dim=None, hidden_size=128, num_key_value_heads=None), innerq=promise("enabled")
    ),
}


FOUR = dict(num_hidden_layers=4, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"] * 2)
LATENT = dict(kv_lora_rank=32, q_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=48)

# Models that do something between the cache and their attention, or whose layers differ from one another.
UNUSUAL = {
    "diffllama": Family("DiffLlamaConfig", {}, innerq=promise("fallback")),  # attends to halves of the values
    "doge": Family("DogeConfig", {}, s2o=NOTHING, innerq=promise("fallback")),  # makes its masks itself
    "jetmoe": Family(
        "JetMoeConfig",
        dict(kv_channels=32, num_local_experts=2, num_experts_per_tok=2, num_key_value_heads=4),
        innerq=promise("fallback"),
    ),
    "minimax_m3": Family(
        "MiniMaxM3VLTextConfig",
        dict(layer_types=["full_attention", "minimax_m3_sparse"], num_local_experts=2, num_experts_per_tok=1),
        s2o=NOTHING,
        innerq=promise("fallback", "unsupported"),
    ),
    "deepseek_v32": Family(
        "DeepseekV32Config",
        dict(
            num_key_value_heads=4,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            index_topk=16,
            index_n_heads=2,
            index_head_dim=64,
            **LATENT,
            **EXPERTS,
        ),
        s2o=NOTHING,
        innerq=NOTHING,
    ),
    "gemma4": Family(
        "Gemma4TextConfig",
        dict(num_kv_shared_layers=2, global_head_dim=64, hidden_size_per_layer_input=16, **FOUR)
        | dict(vocab_size_per_layer_input=VOCAB),
        s2o=MIXED,
        innerq=MIXED,
    ),
    "gemma3n": Family(
        "Gemma3nTextConfig",
        dict(num_kv_shared_layers=2, hidden_size_per_layer_input=16, laurel_rank=8, altup_num_inputs=2, **FOUR)
        | dict(vocab_size_per_layer_input=VOCAB, activation_sparsity_pattern=[0.0] * 4),
        s2o=MIXED,
        innerq=MIXED,
    ),
    "falcon_h1": Family(
        "FalconH1Config",
        dict(mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=16)
        | dict(mamba_chunk_size=16),
        innerq=NOTHING,
    ),
    "granite_swa": Family(  # learned sinks in all its layers
        "GraniteSWAConfig",
        dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]),
        s2o=MIXED,
        innerq=MIXED,
    ),
    "mimo_v2_flash": Family(  # learned sinks in its sliding layers, head_dim of values unlike that of keys
        "MiMoV2FlashConfig",
        dict(n_routed_experts=4, n_group=1, topk_group=1, v_head_dim=16, **FOUR, **EXPERTS),
        s2o=MIXED,
        innerq=MIXED,
    ),
    "zamba2": Family(  # layers that share one attention module
        "Zamba2Config",
        dict(num_hidden_layers=3, layers_block_type=["mamba", "hybrid", "mamba"], mamba_d_state=16, mamba_ngroups=1)
        | dict(n_mamba_heads=4, mamba_headdim=32, chunk_size=16, num_mem_blocks=1, num_key_value_heads=4),
        s2o=MIXED,
        innerq=NOTHING,
    ),
    "phi": Family("PhiConfig", dict(hidden_size=320, head_dim=None, num_key_value_heads=4)),  # head_dim 80
    "gpt2": Family("GPT2Config", dict(head_dim=None, hidden_size=128)),
}


def skip_if_unbuildable(name: str) -> None:
    """Skips where the installed transformers cannot even make this family's config, with its own words."""
    try:
        getattr(transformers, (FAMILIES | UNUSUAL)[name].config)()
    except Exception as error:
        pytest.skip(f"transformers {transformers.__version__} cannot build {name}: {error}")


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """The tiny model of a family's name, see `build_family`."""
    skip_if_unbuildable(name)
    return build_family((FAMILIES | UNUSUAL)[name], seed)


def build_family(family: Family, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny model with random weights, float32, eval mode; the same by seed. `changes` are of its config."""
    fields = {**TINY, **family.changes, **changes}
    fields = {key: value for key, value in fields.items() if value is not None or key not in TINY}
    fields["eos_token_id"] = None
    config = getattr(transformers, family.config)(**fields)
    torch.manual_seed(seed)
    implementation = {} if family.attention is None else {"attn_implementation": family.attention}
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **implementation)
    model = model.eval().to(DEVICE)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def prompt(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """Token ids `[batch, length]` without padding tokens."""
    return torch.randint(2, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


WORDS = {
    promise("enabled"): "all layers",
    MIXED: "full-attention layers",
    promise("fallback"): "smaller, not faster",
    promise("fallback", "unsupported"): "full-attention layers, smaller, not faster",
    NOTHING: "no",
}


def as_table() -> str:
    """What is promised on which families, in Markdown; the README quotes it, and tests/test_documents.py compares."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, family in (FAMILIES | UNUSUAL).items():
        alike.setdefault((WORDS[family.s2o], WORDS[family.innerq]), []).append(name)
    rows = [f"| {', '.join(sorted(names))} | {s2o} | {innerq} |" for (s2o, innerq), names in alike.items()]
    return "\n".join(["| model family | S2O | InnerQ |", "| --- | --- | --- |", *rows])
