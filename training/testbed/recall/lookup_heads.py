"""A start from which lookup is learned in a minute: previous-token heads and matching heads, wired before training.

Left to chance, a narrow model sits for many hundred steps on "one of the values seen so far" before attention to *the
token after this key* forms (a sharp phase change). The two halves of that circuit are known, so both are put in place:

- layer 0, query heads 0 and 1: biases that, turned by RoPE, peak one and two tokens back, whatever the tokens are;
- layer 1, query head 0: "my own token" matches "the token one back of a position", which finds `value 1` from the key;
- layer 1, query head 2: "one back of me" matches "two back of a position", which finds `value 2` from `value 1`.

Everything stays trainable; training decides how much of it survives.
"""

import torch
from transformers import LlamaForCausalLM

EMBEDDING_GAIN = 8.0  # a token must stay visible beside what the first layers add to it
OUTPUT_GAIN = 0.35  # about 1 / sqrt(2 * layers): the residual stream keeps its size
BIAS = 4.0
FAST = 12  # RoPE frequencies that tell neighbours apart; the slower ones match content at any distance


@torch.no_grad()
def wire_lookup_heads(model: LlamaForCausalLM) -> None:
    """Rescale a freshly initialised `model` and wire its lookup heads, in place.

    Raises:
        ValueError: the model has fewer than two layers, four query heads, two KV heads, or no attention bias.
    """
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if config.num_hidden_layers < 2 or kv_heads != 2 or heads < 4 or not config.attention_bias:
        raise ValueError(
            f"wiring needs 2 layers, 4 query heads on 2 KV heads and attention_bias=True, not "
            f"{config.num_hidden_layers} layers, {heads} on {kv_heads} heads, attention_bias={config.attention_bias}"
        )
    model.model.embed_tokens.weight.mul_(EMBEDDING_GAIN)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(OUTPUT_GAIN)
        layer.mlp.down_proj.weight.mul_(OUTPUT_GAIN)
    _look_back(model, offsets=(1, 2))
    _match(model)


def _look_back(model: LlamaForCausalLM, offsets: tuple[int, ...]) -> None:
    """Give query heads 0, 1, ... of layer 0 biases whose rotated product is largest `offsets[head]` tokens back."""
    config, attention = model.config, model.model.layers[0].self_attn
    size, half = config.head_dim, config.head_dim // 2
    angles = config.rope_parameters["rope_theta"] ** (-torch.arange(FAST) / half)
    attention.k_proj.weight[:size] *= 0.25
    attention.k_proj.bias[:FAST] = BIAS
    for head, offset in enumerate(offsets):
        begin = head * size
        attention.q_proj.weight[begin : begin + size] *= 0.25
        attention.q_proj.bias[begin : begin + FAST] = BIAS * torch.cos(offset * angles)
        attention.q_proj.bias[begin + half : begin + half + FAST] = -BIAS * torch.sin(offset * angles)


def _match(model: LlamaForCausalLM) -> None:
    """Let layer 1 compare what layer 0's heads carried along with what is there, on slow frequencies."""
    size = model.config.head_dim
    carry, match = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    carry.o_proj.weight[:, : 2 * size] /= OUTPUT_GAIN
    own = carry.v_proj.weight[:size]  # how layer 0 reads a token, [head_dim, hidden]
    one_back, two_back = carry.o_proj.weight[:, : 2 * size].T.split(size)  # where it writes it
    slow = torch.where(torch.arange(size) % (size // 2) >= FAST, 1.0, 0.1)[:, None]
    second = model.config.num_attention_heads // 2 * size  # the first query head on KV head 1
    match.q_proj.weight[:size] = own * slow
    match.k_proj.weight[:size] = one_back * slow
    match.q_proj.weight[second : second + size] = one_back * slow
    match.k_proj.weight[size:] = two_back * slow
