"""Greedy requests among sampled ones, by transformers' own filter and ours."""

import torch
from transformers import LogitsProcessorList, TopKLogitsWarper
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from hf_infeco.flying.sampling import make_greedy_exact

SCORES = torch.tensor([[3.0, 7.0, 7.0, 1.0]] * 3)


def filtered(makes_exact: bool) -> list[list[int]]:
    """Tokens that are kept for top_k of 1, 2 and 3."""
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([TopKLogitsWarper(50)]), True)
    if makes_exact:
        make_greedy_exact(processors)
    kept = processors(None, SCORES, torch.tensor([[1, 2, 3, 9, 9]], dtype=torch.int32))
    return [row.isfinite().nonzero().flatten().tolist() for row in kept]


def test_top_1_keeps_one_of_the_tokens_that_are_the_best_and_more_are_as_before():
    assert filtered(makes_exact=False) == [[1, 2], [1, 2], [0, 1, 2]]
    assert filtered(makes_exact=True) == [[1], [1, 2], [0, 1, 2]]
