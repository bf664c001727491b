"""Exact attention of the pairs that a rule visits, and the knob at which it visits a wanted share of them."""

from statistics import mean

import torch

from .inputs import Heads
from .rules import BLOCK, Rule

BISECTIONS = 10


@torch.no_grad()
def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visited: torch.Tensor) -> torch.Tensor:
    """Softmax attention of one head `[N, D]` over the visited pairs alone, a query block at a time; `[N, Dv]`.

    Args:
        visited: `[query blocks, N]`, as of a rule. Every row must visit a key that is not in its future.
    """
    rows = len(query) // len(visited)
    out = torch.empty_like(value)
    for block, seen in enumerate(visited):
        here = torch.arange(block * rows, (block + 1) * rows, device=key.device)
        keys = seen[: (block + 1) * rows].nonzero().squeeze(1)
        logits = query[here] @ key[keys].T * key.shape[1] ** -0.5
        out[here] = logits.masked_fill_(keys > here[:, None], -torch.inf).softmax(-1) @ value[keys]
    return out


def causal_share(visited: torch.Tensor) -> float:
    """Density of one head: the share of its causal pairs that are visited."""
    blocks, length = visited.shape
    rows = length // blocks
    by_block = visited.view(blocks, blocks, rows)
    past = by_block.sum(-1).tril(-1).sum() * rows
    own = by_block.diagonal().sum(1)  # [rows], the blocks' first keys, second keys and so on
    return int(past + (own * torch.arange(rows, 0, -1, device=own.device)).sum()) / (length * (length + 1) // 2)


def follow(rule: Rule, heads: Heads, share: float) -> tuple[torch.Tensor, float]:
    """Attention of all heads `[1, H, N, Dv]`, each restricted to what the rule visits for it, and the density."""
    out, shares = [], []
    for query, key, value in zip(*query_heads(heads)):
        visited = rule(query, key, share)
        out.append(attend(query, key, value, visited))
        shares.append(causal_share(visited))
    return torch.stack(out)[None], mean(shares)


def knob_at(rule: Rule, heads: Heads, density: float) -> float:
    """The smallest knob found at which the rule visits at least `density` of the pairs of all heads.

    At least, so that no peer has to do with fewer pairs than what it is compared with.
    """
    if heads.key.shape[2] % BLOCK:
        raise ValueError(
            f"{heads.key.shape[2]} keys are no multiple of {BLOCK}, and the rules visit whole blocks. Choose a length "
            "that is one."
        )
    queries, keys, _ = query_heads(heads)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        if mean(causal_share(rule(query, key, share)) for query, key in zip(queries, keys)) < density:
            low = share
        else:
            high = share
    return high


def query_heads(heads: Heads) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value `[H, N, D]` of every query head, the keys repeated for GQA."""
    ratio = heads.query.shape[1] // heads.key.shape[1]
    return heads.query[0], heads.key[0].repeat_interleave(ratio, 0), heads.value[0].repeat_interleave(ratio, 0)
