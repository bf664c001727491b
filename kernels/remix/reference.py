"""
ReMix (arXiv 2602.22868) in readable torch: what an undecided position looks like to the model, when its distribution
has changed too much for that, and which positions are committed. One position or row at a time; the oracle of the
tests.
"""

import torch
from torch import Tensor

TOP = 50  # tokens that a soft embedding may hold
LEAST_MASS, MOST_MASS = 0.2, 0.9  # of the tokens it holds
SHARE, FEWEST, MOST = 0.7, 5, 20  # of undecided positions that one step may commit


def soft_embedding(p: Tensor, weight: Tensor, mask_token_id: int, beta: float) -> Tensor:
    """
    The input of an undecided position whose last distribution was `p`: the mask's embedding, moved by `beta` towards
    the likeliest tokens. Mass outside those stays on the mask.

    Args:
        p (float32, `[V]`): probabilities.
        weight (`[V, d]`): input embeddings.

    Returns:
        `[d]`, in the dtype of `weight`.
    """
    mask = weight[mask_token_id]
    mass = min(max(2 * float(p.max()), LEAST_MASS), MOST_MASS)
    moved, cumulative = torch.zeros_like(mask, dtype=torch.float32), 0.0
    for place, token in enumerate(p.argsort(descending=True, stable=True)[:TOP].tolist()):
        cumulative += float(p[token])
        if place > 0 and cumulative > mass:
            break
        moved += p[token] * (weight[token].float() - mask.float())
    return (mask.float() + beta * moved).to(weight.dtype)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """
    Jensen-Shannon divergence in nats, at most ln 2, of distributions `[..., V]`.

    Of an all-zero `p`, which the released code leaves where it has rejected, it is ln(2) / 2.
    """
    middle = (p + q) / 2
    log_middle = middle.clamp(min=torch.finfo(middle.dtype).tiny).log()
    return (_times_log(p) - p * log_middle + _times_log(q) - q * log_middle).sum(-1) / 2


def _times_log(p: Tensor) -> Tensor:
    return torch.where(p > 0, p * p.clamp(min=torch.finfo(p.dtype).tiny).log(), 0.0)


def committed(confidence: list[float], tau_conf: float) -> set[int]:
    """
    Which of a row's undecided positions are committed: the surest of those above `tau_conf`, as many as one step may
    commit; if none is above, the surest. Of equally sure ones the first.
    """
    most = min(max(int(SHARE * len(confidence)), FEWEST), MOST)
    surest = sorted(range(len(confidence)), key=lambda place: -confidence[place])
    return {place for place in surest[:most] if confidence[place] > tau_conf} or set(surest[:1])
