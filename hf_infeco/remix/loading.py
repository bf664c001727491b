"""LLaDA's and Dream's checkpoints as a `MaskedDiffusionLM`."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from .model import MaskedDiffusionConfig, MaskedDiffusionLM

# LLaDA's parameters are named as OLMo's are; the gate of its feed-forward is called ff_proj.
LLADA_NAMES = {
    "model.transformer.wte.": "model.embed_tokens.",
    "model.transformer.ln_f.": "model.norm.",
    "model.transformer.ff_out.": "lm_head.",
    "model.transformer.blocks.": "model.layers.",
    ".q_proj.": ".self_attn.q_proj.",
    ".k_proj.": ".self_attn.k_proj.",
    ".v_proj.": ".self_attn.v_proj.",
    ".attn_out.": ".self_attn.o_proj.",
    ".ff_proj.": ".mlp.gate_proj.",
    ".up_proj.": ".mlp.up_proj.",
    ".ff_out.": ".mlp.down_proj.",
    ".attn_norm.": ".input_layernorm.",
    ".ff_norm.": ".post_attention_layernorm.",
}
# What LLaDA's code can do and Llama's layers cannot, with the values that they can.
LLADA_FIXED = {
    "block_type": "llama",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "layer_norm_type": "rms",
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "include_bias": False,
    "clip_qkv": None,
}
DREAM_FIXED = {"hidden_act": "silu", "rope_scaling": None, "use_sliding_window": False}


def load_diffusion_lm(
    path_or_repo: str | os.PathLike, dtype: torch.dtype = torch.bfloat16, **hub_kwargs: Any
) -> MaskedDiffusionLM:
    """
    A LLaDA or Dream checkpoint, by its `config.json` and safetensors files, in our native model: padding, block caches
    and every attention function of transformers then work. `save_pretrained` makes it a checkpoint like any other.

    Args:
        path_or_repo: a folder, or a repository of the Hub, from which `hub_kwargs` are for `snapshot_download`.
        dtype (`torch.dtype`, defaults to `torch.bfloat16`): of the weights.

    Raises:
        ValueError: if the checkpoint is of another kind, or uses something that Llama's layers cannot do.
    """
    folder = Path(path_or_repo)
    if not folder.is_dir():
        patterns = ["config.json", "*.safetensors"]
        folder = Path(snapshot_download(os.fspath(path_or_repo), allow_patterns=patterns, **hub_kwargs))
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = str(values.get("model_type")).lower()
    if kind not in ("llada", "dream"):
        raise ValueError(f"{folder} holds a model of type {kind!r}: load_diffusion_lm reads llada and dream.")
    files = sorted(folder.glob("*.safetensors"))
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    config = llada_config(values) if kind == "llada" else dream_config(values)
    renamed = {llada_name(name) if kind == "llada" else name: tensor.to(dtype) for name, tensor in weights.items()}
    return build(config, renamed, dtype)


def build(config: MaskedDiffusionConfig, weights: dict[str, Tensor], dtype: torch.dtype) -> MaskedDiffusionLM:
    """The model of a config with these weights; the one bias of attention that Dream does without is zero."""
    with torch.device("meta"):
        model = MaskedDiffusionLM(config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.attention_bias:
        absent = [name for name in wanted if name.endswith("o_proj.bias") and name not in weights]
        weights |= {name: torch.zeros(wanted[name], dtype=dtype, device="cpu") for name in absent}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    if wanted != (found := {name: tensor.shape for name, tensor in weights.items()}):
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ValueError(
            f"The checkpoint does not fit its config in {len(wrong)} parameters, first {wrong[0]}: it is "
            f"{found.get(wrong[0])} and should be {wanted.get(wrong[0])}."
        )
    return MaskedDiffusionLM.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)


def llada_name(name: str) -> str:
    """The name of one of LLaDA's parameters in a Llama."""
    for old, new in LLADA_NAMES.items():
        name = name.replace(old, new)
    return name


def llada_config(values: dict[str, Any]) -> MaskedDiffusionConfig:
    """The config of a LLaDA checkpoint."""
    _refuse_other_values("LLaDA", values, LLADA_FIXED)
    return MaskedDiffusionConfig(
        vocab_size=values.get("embedding_size") or values["vocab_size"],
        hidden_size=values["d_model"],
        intermediate_size=values.get("mlp_hidden_size") or values["mlp_ratio"] * values["d_model"],
        num_hidden_layers=values["n_layers"],
        num_attention_heads=values["n_heads"],
        num_key_value_heads=values.get("n_kv_heads") or values["n_heads"],
        max_position_embeddings=values["max_sequence_length"],
        rms_norm_eps=values["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": values["rope_theta"]},
        attention_bias=bool(values.get("include_qkv_bias")),
        tie_word_embeddings=values["weight_tying"],
        **_token_ids(values),
    )


def dream_config(values: dict[str, Any]) -> MaskedDiffusionConfig:
    """The config of a Dream checkpoint, which is named as Qwen2's is."""
    _refuse_other_values("Dream", values, DREAM_FIXED)
    same = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    same += ["num_key_value_heads", "max_position_embeddings", "rms_norm_eps"]
    return MaskedDiffusionConfig(
        **{name: values[name] for name in same},
        rope_parameters={"rope_type": "default", "rope_theta": values["rope_theta"]},
        attention_bias=True,
        tie_word_embeddings=values.get("tie_word_embeddings", False),
        shifted_logits=True,
        **_token_ids(values),
    )


def _token_ids(values: dict[str, Any]) -> dict[str, Any]:
    names = ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id")
    return {name: values.get(name) for name in names}


def _refuse_other_values(kind: str, values: dict[str, Any], fixed: dict[str, Any]) -> None:
    for name, value in fixed.items():
        if (found := values.get(name, value)) != value:
            raise ValueError(f"This {kind} has {name}={found!r}, which Llama's layers cannot do; they do {value!r}.")
