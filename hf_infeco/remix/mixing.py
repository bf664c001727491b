"""What undecided positions show the model, and what is remembered of their distributions."""

import torch
from torch import Tensor

from ..kernels.remix.reference import LEAST_MASS, MOST_MASS, TOP
from .config import RemixConfig


def soft_embeddings(p: Tensor, weight: Tensor, mask_token_id: int, beta: float) -> Tensor:
    """
    Inputs of undecided positions, `[N, d]` in the dtype of `weight`: `kernels/remix/reference.py` for many rows.

    Args:
        p (float32, `[N, V]`): their last distributions.
        weight (`[V, d]`): input embeddings.
    """
    top, tokens = p.topk(min(TOP, p.shape[1]), dim=1)
    mass = (2 * top[:, :1]).clamp(LEAST_MASS, MOST_MASS)
    is_held = top.cumsum(1) <= mass
    is_held[:, 0] = True
    held = (top * is_held)[:, None]  # [N, 1, TOP]
    mask = weight[mask_token_id].float()
    moved = torch.bmm(held, weight[tokens].float() - mask)[:, 0]
    return (mask + beta * moved).to(weight.dtype)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats of rows `[N, V]`, by their entropies."""
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def entropy(p: Tensor) -> Tensor:
    """In nats, of rows `[N, V]`. torch.special.entr does the same without vector units, four times slower on a CPU."""
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(1)


class Mixing:
    """
    The memory of ReMix: the last distribution of every undecided position of the rows' current blocks, in the order
    of their places, and whether it agreed with the one before.

    A position is mixed once two distributions in a row agreed. So mixing begins at the third forward of an answer, and
    at the second of every later block, of which the block before has left a distribution.

    Args:
        weight (`[V, d]`): input embeddings.
        mask_token_id (`int`): which of them stands for an undecided position.
        config (`RemixConfig`): `beta`, `tau_rej` and `sticky_reject`.
    """

    def __init__(self, weight: Tensor, mask_token_id: int, config: RemixConfig) -> None:
        self.weight, self.mask_token_id, self.config = weight, mask_token_id, config
        self.previous = torch.zeros(0, len(weight), dtype=torch.float32, device=weight.device)  # [N, V]
        self.is_mixing = torch.zeros(0, dtype=torch.bool, device=weight.device)  # [N]

    def inputs(self) -> Tensor:
        """Embeddings of the current blocks' undecided positions, `[N, d]`, or `[d]` for all of them at first."""
        embeds = self.weight[self.mask_token_id]
        if self.is_mixing.any():
            embeds = embeds.repeat(len(self.is_mixing), 1)
            p = self.previous[self.is_mixing]
            embeds[self.is_mixing] = soft_embeddings(p, self.weight, self.mask_token_id, self.config.beta)
        return embeds

    def observe(self, p: Tensor, stays: Tensor) -> None:
        """
        Compares the positions that stay undecided with what they were.

        Args:
            p (float32, `[N, V]`): their distributions in this forward.
            stays (bool, `[N]`): which of them stay.
        """
        now = p[stays]
        self.is_mixing = torch.zeros(len(now), dtype=torch.bool, device=p.device)
        if len(self.previous) > 0:  # not the first forward
            js = js_divergence(self.previous[stays], now)
            self.is_mixing = js <= self.config.tau_rej
            if self.config.sticky_reject:
                now = now.masked_fill((js > self.config.tau_rej)[:, None], 0.0)
        self.previous = now

    def enter(self, p: Tensor, order: Tensor) -> None:
        """
        Adds the positions of blocks that rows have come to.

        Args:
            p (float32, `[M, V]`): their distributions in this forward, NaN where it has not computed them: no
                divergence from these is a number, so they agree with nothing and are not rejected either.
            order (int64, `[N + M]`): puts those remembered and, behind them, those entering in the order of places.
        """
        self.previous = torch.cat([self.previous, p])[order]
        self.is_mixing = torch.cat([self.is_mixing, self.is_mixing.new_zeros(len(p))])[order]
