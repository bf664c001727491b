"""Tiny models with random weights: their logits mean nothing, but they are sure of some tokens and not of others."""

import torch

from hf_infeco.kernels.remix import reference
from hf_infeco.remix import MaskedDiffusionConfig, MaskedDiffusionLM, RemixConfig

MASK, VOCABULARY = 3, 40


def tiny_model(seed: int = 0, **settings) -> MaskedDiffusionLM:
    """In double precision, so that no sum's order decides which token is surest."""
    torch.manual_seed(seed)
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, head_dim=16)
    values = dict(vocab_size=VOCABULARY, mask_token_id=MASK, pad_token_id=0, initializer_range=0.3, **shape)
    return MaskedDiffusionLM(MaskedDiffusionConfig(**{**values, **settings})).double().eval()


def prompts(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def fill_in_by_hand(model: MaskedDiffusionLM, prompt: torch.Tensor, config: RemixConfig) -> tuple[torch.Tensor, int]:
    """ReMix for one prompt `[P]`, position by position as the paper and the released code do it; answer, forwards."""
    weight = model.get_input_embeddings().weight
    start, end = len(prompt), len(prompt) + config.max_new_tokens
    ids = torch.cat([prompt, torch.full((config.max_new_tokens,), MASK)])
    history: dict[int, torch.Tensor] = {}
    forwards = 0
    for begin in range(start, end, config.block_length):
        undecided, mixing = list(range(begin, begin + config.block_length)), set()
        while undecided:
            embeds = weight[ids].clone()
            for place in mixing:
                embeds[place] = reference.soft_embedding(history[place], weight, MASK, config.beta)
            logits = model(inputs_embeds=embeds[None]).logits[0].float()
            logits[:, MASK] = float("-inf")
            p = logits.softmax(-1)
            forwards += 1
            now = reference.committed([float(p[place].max()) for place in undecided], config.tau_conf)
            for place in (undecided[at] for at in now):
                ids[place] = p[place].argmax()
            undecided = [place for at, place in enumerate(undecided) if at not in now]
            mixing, last = set(), history
            history = {place: p[place] for place in range(begin, end)}
            for place in undecided:
                if place in last and float(reference.js_divergence(last[place], p[place])) <= config.tau_rej:
                    mixing.add(place)
                elif place in last and config.sticky_reject:
                    history[place] = torch.zeros_like(p[place])
    return ids[start:], forwards
