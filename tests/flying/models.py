"""Tiny random models of the families whose width can change, with four KV heads each."""

import torch
import transformers
from transformers import PreTrainedModel

from ..contract.families import FAMILIES, TINY, WINDOW, prompt

HEADS = dict(num_attention_heads=8, num_key_value_heads=4)
COHERE2 = ("Cohere2Config", dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]))
NAMES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "olmo2", "granite", "cohere2", "smollm3"]
NAMES += ["mixtral", "qwen3_moe", "gpt_oss"]
UNEVEN = dict(num_attention_heads=9, num_key_value_heads=3, head_dim=16, hidden_size=144)


def build(name: str, **changes) -> PreTrainedModel:
    """The tiny model of a family, float32, in eval mode; the same in every process."""
    config, own, attention = COHERE2 + (None,), {}, None
    if name != "cohere2":
        family = FAMILIES[name]
        config, own, attention = family.config, family.changes, family.attention
    else:
        config, own = COHERE2
    fields = {**TINY, **own, **HEADS, **changes}
    fields = {key: value for key, value in fields.items() if value is not None or key not in TINY} | {
        "eos_token_id": None
    }
    torch.manual_seed(0)
    implementation = {} if attention is None else {"attn_implementation": attention}
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**fields), dtype=torch.float32, **implementation
    ).eval()
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.15)
    for parameter in model.parameters():  # biases and sinks that are zero would hide that they are added twice
        if parameter.ndim == 1 or parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.1)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


__all__ = ["NAMES", "UNEVEN", "build", "prompt"]
