"""Whole searches with a small model of a 150K vocabulary: unconstrained, with the processor, and our own."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hf_infeco

from ..measuring import median_seconds
from .catalogues import BATCH, LENGTH, PROMPT, TOKENS, WIDE_VOCABULARY, catalogue


def measure_search(items: int, beams: int) -> dict[str, Any]:
    """Seconds of each search, and whether ours finds what transformers' finds with the processor."""
    index = hf_infeco.StaticIndex.build(catalogue(items, WIDE_VOCABULARY - TOKENS), vocab_size=WIDE_VOCABULARY)
    torch.manual_seed(0)
    shape = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4)
    config = LlamaConfig(vocab_size=WIDE_VOCABULARY, num_key_value_heads=2, eos_token_id=None, pad_token_id=0, **shape)
    model = LlamaForCausalLM(config).eval()
    inputs = torch.randint(1, WIDE_VOCABULARY - TOKENS, (BATCH, PROMPT))

    def generate(**settings: Any) -> Any:
        search = dict(num_beams=beams, num_return_sequences=beams, length_penalty=0.0, do_sample=False)
        mask = torch.ones_like(inputs)
        return model.generate(inputs, attention_mask=mask, max_new_tokens=LENGTH, **search, **settings)

    def constrained() -> Any:
        processor = hf_infeco.StaticLogitsProcessor(index, prompt_length=PROMPT)
        return generate(logits_processor=[processor], return_dict_in_generate=True, output_scores=True)

    def searched(normalize: str) -> Any:
        return hf_infeco.constrained_beam_search(model, inputs, index, beams, normalize=normalize)

    calls = {
        "transformers, unconstrained": generate,
        "transformers, our processor": constrained,
        "constrained_beam_search": lambda: searched("vocabulary"),
        "constrained_beam_search, normalize='level'": lambda: searched("level"),
    }
    for call in calls.values():
        call()
    seconds = median_seconds(torch.device("cpu"), calls, 3)
    right, mine = constrained(), searched("vocabulary")
    difference = (right.sequences_scores.view(BATCH, -1) - mine.scores).abs()
    return {
        "items": items,
        "model": {"parameters": model.num_parameters(), **shape},
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "same_sequences": torch.equal(index.lookup(right.sequences[:, PROMPT:]).view(BATCH, -1), mine.ranks),
        "largest_score_difference": float(difference.max()),
        "largest_relative_score_difference": float((difference / mine.scores.abs()).max()),
        "times_faster_than_unconstrained": {
            name: round(seconds["transformers, unconstrained"] / value, 2) for name, value in seconds.items()
        },
    }
