"""Tiny random models of the families whose width can change, with four KV heads each."""

import torch
from transformers import PreTrainedModel

from ..contract.families import FAMILIES, WINDOW, Family, build_family, prompt

HEADS = dict(num_attention_heads=8, num_key_value_heads=4)
COHERE2 = Family("Cohere2Config", dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]))
NAMES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "olmo2", "granite", "cohere2", "smollm3"]
NAMES += ["mixtral", "qwen3_moe", "gpt_oss"]
UNEVEN = dict(num_attention_heads=9, num_key_value_heads=3, head_dim=16, hidden_size=144)


def build(name: str, **changes) -> PreTrainedModel:
    """The tiny model of a family, float32, in eval mode; the same in every process."""
    model = build_family(COHERE2 if name == "cohere2" else FAMILIES[name], **(HEADS | changes))
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.15)
    for parameter in model.parameters():  # biases and sinks that are zero would hide that they are added twice
        if parameter.ndim == 1 or parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.1)
    return model


__all__ = ["NAMES", "UNEVEN", "build", "prompt"]
