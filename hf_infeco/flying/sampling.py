"""Greedy requests among sampled ones: what `top_k=1` means where several tokens are the best."""

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
    ContinuousBatchingTopKLogitsWarper,
)


class ExactTopK(ContinuousBatchingTopKLogitsWarper):
    """transformers' filter by request, which keeps all that are as likely as the last one; of one, the first."""

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """`scores [B, V]` with -inf where a token is not kept; `tensor_arg [>= B]`, int32: each row's `top_k`."""
        kept = super().__call__(scores, tensor_arg)
        best = scores.argmax(dim=-1, keepdim=True)
        only = torch.full_like(scores, self.filter_value).scatter(-1, best, scores.gather(-1, best))
        return torch.where(tensor_arg[: len(scores), None] == 1, only, kept)


def make_greedy_exact(processors: ContinuousBatchingLogitsProcessorList) -> None:
    """Half precision makes ties common, among which transformers' filter would leave the choice to chance."""
    for index, each in enumerate(processors.logits_processor):
        if type(each) is ContinuousBatchingTopKLogitsWarper:
            processors.logits_processor[index] = ExactTopK(each)
