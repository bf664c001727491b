"""How a model is split over processes: transformers' tensor parallel plan of it, or ours, and what cannot be split."""

import re
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from .. import compat

# Families whose plan in transformers splits no layer. `heads` slices a parameter of the attention module itself.
OWN_PLANS = {
    "gpt_oss": {
        "model.layers.*.self_attn.q_proj": "colwise",
        "model.layers.*.self_attn.k_proj": "colwise",
        "model.layers.*.self_attn.v_proj": "colwise",
        "model.layers.*.self_attn.o_proj": "rowwise",
        "model.layers.*.self_attn.sinks": "heads",
        "model.layers.*.mlp.experts": "moe_tp_experts",
        "model.layers.*.mlp.experts.gate_up_proj": "interleaved_colwise",
        "model.layers.*.mlp.experts.gate_up_proj_bias": "interleaved_colwise",
        "model.layers.*.mlp.experts.down_proj": "inner_rowwise",
        "model.layers.*.mlp.experts.down_proj_bias": "once",
    }
}

# Kept whole: norms, and embeddings, whose lookup costs less than a collective.
WHOLE = {"replicate", "replicated_with_grad_allreduce", "embedding_rowwise", "embedding_colwise"}
GATHERED = {"colwise_gather_output", "colwise_rep", "rowwise_split_input", "rowwise_rep"}
PACKED = "packed_colwise"
EXPERTS = "moe_tp_experts"
SPLIT = {"colwise", "rowwise", "heads", "interleaved_colwise", "inner_rowwise", "once", PACKED, EXPERTS} | GATHERED


@dataclass(frozen=True)
class Part:
    """
    A module that a plan splits.

    Attributes:
        name (`str`): its full name.
        style (`str`, *optional*): of its forward; None where only its parameters are sliced.
        parameters (`dict[str, str]`): style of each of its parameters that is split.
        in_attention (`bool`): whether its features are split by KV heads.
    """

    name: str
    module: nn.Module
    style: str | None
    parameters: dict[str, str]
    in_attention: bool


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        parts (`list[Part]`): what is split.
        num_key_value_heads (`int`): of every layer.
        splits_heads (`bool`): whether a process holds some of the KV heads; else each holds all of them.
    """

    parts: list[Part]
    num_key_value_heads: int
    splits_heads: bool

    def heads(self, width: int) -> list[int]:
        """KV heads that each of `width` processes holds."""
        count = self.num_key_value_heads
        return head_counts(count, width) if self.splits_heads else [count] * width


def head_counts(num_heads: int, width: int) -> list[int]:
    """As even as can be: 3 heads on 2 processes are [2, 1]."""
    return [num_heads // width + (index < num_heads % width) for index in range(width)]


def make_plan(model: PreTrainedModel, max_width: int) -> Plan:
    """
    What to split in `model`; at `max_width=1` it needs no plan of its own.

    Raises:
        ValueError: where the model has no plan, one that we do not know, or fewer KV heads than processes.
    """
    name, config = type(model).__name__, compat.text_config(model.config)
    styles = OWN_PLANS.get(config.model_type) or compat.tensor_parallel_plan(model)
    if max_width > 1 and not any(".layers." in key for key in styles):
        raise ValueError(
            f"{name} has no tensor parallel plan in transformers, so its width cannot change. Run replicas of it "
            "(width 1), or give it one: model.tp_plan = {'model.layers.*.self_attn.q_proj': 'colwise', ...}."
        )
    if unknown := sorted(set(styles.values()) - WHOLE - SPLIT):
        raise ValueError(f"The plan of {name} has styles {unknown}, which cannot be switched: use {sorted(SPLIT)}.")
    if compat.caches_latents(config):
        raise ValueError(f"{name} caches latents that no process can hold a part of. Run it at width 1.")
    parts = _parts(model, styles)
    splits_heads = any(part.in_attention and set(part.parameters.values()) & {"colwise"} for part in parts)
    heads = {compat.key_value_dims(config, index)[0] for index in range(config.num_hidden_layers)}
    if splits_heads and len(heads) != 1:
        raise ValueError(f"The layers of {name} have {sorted(heads)} KV heads; only equal numbers can be split.")
    if splits_heads and max_width > min(heads):
        raise ValueError(
            f"max_width={max_width} exceeds the {min(heads)} KV heads of {name}: a process would hold none. "
            f"Use max_width={min(heads)} or less."
        )
    return Plan(parts, max(heads), splits_heads)


def _parts(model: PreTrainedModel, styles: dict[str, str]) -> list[Part]:
    attention = {id(module) for module in compat.self_attention(compat.decoder_of(model))}
    inside = {id(child) for module in model.modules() if id(module) in attention for child in module.modules()}
    parts = []
    for name, module in model.named_modules():
        style = _style_of(name, styles)
        parameters = {}
        for key, value in module._parameters.items():
            own = _style_of(f"{name}.{key}", styles) or (style if style != EXPERTS else None)
            if value is not None and own is not None:
                parameters[key] = own
        if parameters:
            parts.append(Part(name, module, style, parameters, id(module) in inside))
    return parts


def _style_of(name: str, styles: dict[str, str]) -> str | None:
    style = styles.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
    return None if style in WHOLE else style
