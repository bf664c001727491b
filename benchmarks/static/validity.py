"""Whether what beams find is in the catalogue, and is what transformers' own constraint finds."""

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hf_infeco


def count_valid(catalogues: int, beams: int) -> dict[str, Any]:
    """Beams over small catalogues, also of several lengths and skewed: members, and equal to transformers' own."""
    torch.manual_seed(0)
    vocabulary, end, prompts = 256, 2, 16
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2)
    config = LlamaConfig(vocab_size=vocabulary, initializer_range=0.15, eos_token_id=end, pad_token_id=0, **shape)
    model = LlamaForCausalLM(config).eval()
    counts = {"beams": 0, "members": 0, "same_as_transformers": 0}
    for seed in range(catalogues):
        generator = np.random.default_rng(seed)
        lengths = generator.integers(1, 6, 500) if seed % 2 else np.full(500, 4)
        draw = [
            generator.geometric(0.1, size) if seed % 4 > 1 else generator.integers(0, 99, size) for size in lengths
        ]
        sequences = [(3 + tokens % 200).tolist() for tokens in draw]
        sequences += sequences[:50]
        index = hf_infeco.StaticIndex.build(sequences, vocab_size=vocabulary)
        processor = hf_infeco.StaticLogitsProcessor(index, prompt_length=4, eos_token_id=end)
        follows: dict[tuple, set] = {}
        for tokens in map(tuple, sequences):
            for at in range(len(tokens)):
                follows.setdefault(tokens[:at], set()).add(tokens[at])
            follows.setdefault(tokens, set()).add(end)

        def allowed(batch: int, ids: torch.Tensor, follows: dict = follows) -> list[int]:
            return sorted(follows.get(tuple(ids[4:].tolist()), {0, end}))

        ids = torch.randint(210, vocabulary, (prompts, 4), generator=torch.Generator().manual_seed(seed))
        search = dict(num_beams=beams, num_return_sequences=beams, length_penalty=0.0, do_sample=False)
        settings = dict(max_new_tokens=6, return_dict_in_generate=True, output_scores=True, **search)
        got, expected = (
            model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **how)
            for how in (dict(logits_processor=[processor]), dict(prefix_allowed_tokens_fn=allowed))
        )
        whole = set(map(tuple, sequences))
        rows = [row[: row.index(end)] if end in row else row for row in got.sequences[:, 4:].tolist()]
        same = (got.sequences == expected.sequences).all(1) & (got.sequences_scores == expected.sequences_scores)
        counts["beams"] += len(rows)
        counts["members"] += sum(tuple(token for token in row if token) in whole for row in rows)
        counts["same_as_transformers"] += int(same.sum())
    return {"catalogues": catalogues, **counts}
