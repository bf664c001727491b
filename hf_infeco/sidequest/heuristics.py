"""
Policies that drop single tokens, down to a budget, by what attention says or by age alone.

Each layer keeps as many tokens as the others, and its own choice of them; heads of a layer keep the same ones, where
the papers let each choose. What is kept stays at its position. Tokens are dropped at turn boundaries, so a turn and a
tool's result come on top of the budget for as long as they are read.
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .memory import keep_slots
from .observing import attention_received, watch_attention
from .policies import Policy

if TYPE_CHECKING:
    from .conversation import Conversation, Request


@dataclass
class TokenPolicy(Policy):
    """
    Base of policies over single tokens.

    Args:
        budget (`int`): tokens kept.
    """

    budget: int
    needs_own_cache = True

    def at_boundary(self, conversation: "Conversation") -> "Iterable[Request]":
        thread = conversation.main
        excess = thread.resident - self.budget
        if excess > 0 and thread.cache is not None:
            keep_slots(thread.cache, self._kept)
            thread.resident -= excess
        return ()

    def _kept(self, layer: int, key: Tensor) -> Tensor:
        """Which slots of a layer with keys `[Hkv, slots, D]` are kept: bool `[slots]`, `budget` of them."""
        score = self.score(layer, key)
        kept = torch.zeros(key.shape[1], dtype=torch.bool, device=key.device)
        kept[score.topk(self.budget).indices] = True
        return kept

    @abstractmethod
    def score(self, layer: int, key: Tensor) -> Tensor:
        """The worth of each slot of a layer with keys `[Hkv, slots, D]`: `[slots]`; inf for those that stay."""


@dataclass
class SinkWindow(TokenPolicy):
    """
    The first tokens and the newest (StreamingLLM, arXiv 2309.17453).

    Args:
        sinks (`int`, defaults to 4): first tokens.
    """

    sinks: int = 4

    def score(self, layer: int, key: Tensor) -> Tensor:
        score = torch.arange(key.shape[1], dtype=torch.float32, device=key.device)
        score[: self.sinks] = torch.inf
        return score


@dataclass
class Watching(TokenPolicy):
    """Base of those that ask what attention looks at."""

    def begin(self, conversation: "Conversation") -> None:
        watch_attention(conversation.session.model, self.watch, conversation.threads.edits)

    @abstractmethod
    def watch(self, layer: int, query: Tensor, key: Tensor, scale: float) -> None:
        """Is told each forward's queries `[H, q_len, D]` and keys `[H, kv_len, D]`, layer by layer."""


@dataclass
class H2O(Watching):
    """
    The newest tokens, and those that all queries so far have looked at most (H2O, arXiv 2306.14048).

    Args:
        recent (`float`, defaults to 0.5): share of the budget for the newest.
    """

    recent: float = 0.5
    received: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def watch(self, layer: int, query: Tensor, key: Tensor, scale: float) -> None:
        now = attention_received(query, key, scale)
        if layer in self.received:
            before = self.received[layer]
            now[: len(before)] += before
        self.received[layer] = now

    def score(self, layer: int, key: Tensor) -> Tensor:
        return _and_newest(self.received[layer], int(self.recent * self.budget))

    def _kept(self, layer: int, key: Tensor) -> Tensor:
        kept = super()._kept(layer, key)
        self.received[layer] = self.received[layer][kept]
        return kept


@dataclass
class SnapKV(Watching):
    """
    What the last tokens look at, and around it (SnapKV, arXiv 2404.14469).

    Args:
        window (`int`, defaults to 32): last tokens, which are kept.
        kernel (`int`, defaults to 7): slots over which the attention received is pooled.
    """

    window: int = 32
    kernel: int = 7
    queries: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    scale: float = field(default=1.0, init=False, repr=False)

    def watch(self, layer: int, query: Tensor, key: Tensor, scale: float) -> None:
        before = self.queries.get(layer, query[:, :0])
        self.queries[layer] = torch.cat([before, query], 1)[:, -self.window :]
        self.scale = scale

    def importance(self, layer: int, key: Tensor) -> Tensor:
        query = self.queries[layer]
        received = attention_received(query, key.repeat_interleave(len(query) // len(key), 0), self.scale)
        return F.max_pool1d(received[None], self.kernel, 1, self.kernel // 2)[0]

    def score(self, layer: int, key: Tensor) -> Tensor:
        return _and_newest(self.importance(layer, key), min(self.window, self.budget))


@dataclass
class RKV(SnapKV):
    """
    What the last tokens look at and no other key repeats (R-KV, arXiv 2505.24133).

    Args:
        balance (`float`, defaults to 0.1): weight of importance against that of being no repetition.
        alike (`float`, defaults to 0.5): cosine above which keys count as repeating each other.
    """

    window: int = 8
    balance: float = 0.1
    alike: float = 0.5

    def score(self, layer: int, key: Tensor) -> Tensor:
        unit = F.normalize(key.float(), dim=-1)
        cosine = unit @ unit.transpose(1, 2)  # [Hkv, slots, slots]
        cosine = cosine.masked_fill(torch.eye(key.shape[1], dtype=torch.bool, device=key.device), 0)
        # Of keys that repeat each other the newest is none: only an older one is redundant.
        later = torch.ones_like(cosine[0], dtype=torch.bool).triu(1)
        newest = (cosine > self.alike) & later
        is_repeated = newest.any(-1)
        repetition = (cosine.mean(-1) * is_repeated).softmax(-1).mean(0)
        importance = self.importance(layer, key)
        score = self.balance * importance / importance.sum() - (1 - self.balance) * repetition
        return _and_newest(score, min(self.window, self.budget))


def _and_newest(score: Tensor, count: int) -> Tensor:
    """The same with the newest tokens certain to be kept."""
    score = score.clone()
    score[len(score) - count :] = torch.inf
    return score
