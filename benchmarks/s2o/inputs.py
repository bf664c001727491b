"""What the operator is measured on: heads captured from trained models at work, and generated ones."""

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from hf_infeco.training.testbed.recall.needles import sample_document
from hf_infeco.training.testbed.recall.text import encode_text, held_out_text
from hf_infeco.training.testbed.structured_heads import structured_heads

from ..real.reader import Reader

NEEDLES = 32  # in a captured document
# Of the recall model: as many query heads as the generated inputs have. The heads of the two layers before are so
# diffuse that hardly a pair can be left out, by any rule.
LAST_LAYERS = 2
LAYER_STEP = 3  # of a real model: its heads are many
RECORDER = "infeco_recorder"


class Heads(NamedTuple):
    """One attention problem. Layers of a model lie side by side as heads: query heads per KV head stay the same."""

    query: torch.Tensor  # [1, H, N, D], after RoPE
    key: torch.Tensor  # [1, Hkv, N, D], after RoPE, not repeated for GQA
    value: torch.Tensor  # [1, Hkv, N, D]

    def to(self, target: torch.device | torch.dtype | str) -> "Heads":
        """On another device, or in another dtype."""
        return Heads(*(tensor.to(target) for tensor in self))


def generated(seq_len: int, head_dim: int, seed: int) -> Heads:
    """8 query heads on 2 KV heads, float32, with the patterns that training leaves in heads."""
    return Heads(*structured_heads(seq_len, head_dim=head_dim, seed=seed)[:3])


class Captor:
    """The recall model in float32, asked for the heads it attends with while it reads text that hides needles."""

    def __init__(self, folder: Path, device: str):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self.text = torch.tensor(encode_text(self.tokenizer, held_out_text()))

    def heads(self, seq_len: int, seed: int, last: int) -> Heads:
        """Heads of the `last` layers on a document of `seq_len` tokens of held-out text.

        At 32K this is twice the length of the model's longest training row: its far attention is then extrapolated.
        """
        generator = torch.Generator().manual_seed(seed)
        document = sample_document(self.tokenizer, self.text, seq_len, NEEDLES, generator).document
        recorded = capture(self.model, document[None].to(self.model.device))
        return side_by_side(list(recorded.values())[-last:])


def real_heads(reader: Reader, seq_len: int) -> Heads:
    """Every third layer of a real model on a window of text, of those with full attention, side by side."""
    return side_by_side(list(heads_by_layer(reader, seq_len).values())[::LAYER_STEP])


def heads_by_layer(reader: Reader, seq_len: int) -> dict[int, Heads]:
    """Heads of a real model's layers with full attention on a window of text, by layer index."""
    (ids,) = reader.windows(seq_len, 1)
    chosen = full_attention_layers(reader.model.config)
    return {layer: heads for layer, heads in capture(reader.model, ids[None]).items() if layer in chosen}


def full_attention_layers(config: PreTrainedConfig) -> set[int]:
    """Indices of the layers that attend to everything before."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return {layer for layer, kind in enumerate(kinds) if kind == "full_attention"}


def side_by_side(layers: list[Heads]) -> Heads:
    """Layers of a model as heads of one attention problem."""
    return Heads(*(torch.cat(parts, dim=1) for parts in zip(*layers)))


@torch.no_grad()
def capture(model: PreTrainedModel, input_ids: torch.Tensor) -> dict[int, Heads]:
    """What each attention layer is given in one forward of `input_ids` `[1, N]`, by layer index."""
    recorded: dict[int, Heads] = {}
    attend = AttentionInterface()["sdpa"]

    def record(module, query, key, value, attention_mask, **options):
        recorded[module.layer_idx] = Heads(query, key, value)
        return attend(module, query, key, value, attention_mask, **options)

    AttentionInterface.register(RECORDER, record)
    before = model.config._attn_implementation
    model.set_attn_implementation(RECORDER)
    try:
        model(input_ids, use_cache=False, logits_to_keep=1)
    finally:
        model.set_attn_implementation(before)
    return recorded
