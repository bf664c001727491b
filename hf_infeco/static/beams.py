"""The beams of a search: where each is in the trie, and which of all their candidates go on."""

import torch

from ..kernels.static import reference
from ..kernels.static.reference import DEAD, Trie
from .priors import LogPriors


class Beams:
    """
    The running beams and the sequences found so far, for each prompt of a batch. A prompt has one beam at first.

    Args:
        eos_token_id (`int`, *optional*): scored where a sequence ends; without it an end costs nothing.
        log_priors (`LogPriors`, *optional*): added to the scores.

    Attributes:
        node (`torch.Tensor` of int64, `[B, beams]`): where in the trie each beam is.
        scores (`torch.Tensor` of float32, `[B, beams]`): log-probability of each beam so far.
        found_ranks, found_scores (`torch.Tensor`, `[B, num_beams]`): the best whole sequences, best first.
    """

    def __init__(
        self, trie: Trie, batch: int, num_beams: int, eos_token_id: int | None, log_priors: LogPriors | None = None
    ):
        self.trie, self.num_beams, self.eos_token_id, self.log_priors = trie, num_beams, eos_token_id, log_priors
        device = trie.code.device
        self.node = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.scores = torch.zeros(batch, 1, dtype=torch.float32, device=device)
        if log_priors is not None:
            self.scores += log_priors.node[0]
        self.found_ranks = torch.full((batch, num_beams), -1, dtype=torch.int64, device=device)
        self.found_scores = torch.full((batch, num_beams), float("-inf"), dtype=torch.float32, device=device)

    def level_tokens(self, depth: int) -> torch.Tensor:
        """The tokens that sequences have at this depth, ascending, then the end token if there is one; int64."""
        trie = self.trie
        at, behind = trie.alphabet_start[depth : depth + 2].tolist() if depth < trie.length else (0, 0)
        tokens = trie.alphabet[at:behind].long()
        return tokens if self.eos_token_id is None else torch.cat([tokens, tokens.new_tensor([self.eos_token_id])])

    def advance(
        self, logits: torch.Tensor, tokens: torch.Tensor | None, depth: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        One step: the best of all beams' candidates go on, or end.

        Args:
            logits (`torch.Tensor` of float32, `[B * beams, columns]`): of the vocabulary, or of `tokens` if given.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: for each row of the next step the row that it goes on from, where a
            prompt has num_beams rows, and its token; int64 `[B * num_beams]`.
        """
        batch, beams = self.node.shape
        scores, child, token = self._candidates(logits, tokens, depth)
        slots = scores.shape[1]
        # Twice as many as beams, so that enough go on if all others end; and an end counts only among the best
        # num_beams. Both as in transformers' beam search.
        best, position = scores.view(batch, -1).topk(2 * self.num_beams)
        ends = position % slots == slots - 1
        end_scores, ending = best.where(ends, float("-inf")), position // slots
        self._collect(end_scores[:, : self.num_beams], ending[:, : self.num_beams], depth)

        self.scores, order = best.masked_fill(ends, float("-inf")).topk(self.num_beams)
        position = position.gather(1, order)
        prompt = torch.arange(batch, device=position.device)[:, None]
        chosen = (prompt * beams * slots + position).flatten()
        self.node = child.flatten()[chosen].view(batch, -1).where(self.scores > float("-inf"), DEAD)
        return (prompt * self.num_beams + position // slots).flatten(), token.flatten()[chosen]

    def finish(self, depth: int) -> None:
        """Ends every running beam, at the length of the longest sequences."""
        every = torch.arange(self.num_beams, device=self.node.device).expand_as(self.node)
        self._collect(self.scores, every, depth)

    def are_settled(self) -> bool:
        """Whether no running beam can better what was found: going on never raises a score."""
        return bool((self.found_scores.amin(1) >= self.scores.amax(1)).all())

    def _candidates(
        self, logits: torch.Tensor, tokens: torch.Tensor | None, depth: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores, next nodes and tokens of all that may follow each beam, `[B * beams, slots]`; the last slot ends."""
        trie, node = self.trie, self.node.flatten()
        at = torch.full_like(node, depth)
        width = trie.widths[depth] if depth < trie.length else 1
        width = max(width, -(-2 * self.num_beams // self.node.shape[1]))  # spare slots where candidates are few
        entry, child, legal = reference.continuations(trie, node, at, width)
        token = trie.alphabet[entry].long()
        first = trie.alphabet_start[min(depth, trie.length - 1)]
        column = token if tokens is None else (entry - first).clamp(max=len(tokens) - 1)

        norm = logits.logsumexp(1, keepdim=True)
        gain = torch.cat([logits.gather(1, column) - norm, self._end_gain(logits, tokens, norm)], 1)
        if self.log_priors is not None:
            on, ending = self.log_priors.gains(node, at, child)
            gain += torch.cat([on, ending[:, None]], 1)
        legal = torch.cat([legal, reference.is_whole(trie, node, at)[:, None]], 1)
        scores = (self.scores.view(-1, 1) + gain).masked_fill(~legal, float("-inf"))
        return scores, torch.cat([child, node[:, None]], 1), torch.cat([token, token[:, :1]], 1)

    def _end_gain(self, logits: torch.Tensor, tokens: torch.Tensor | None, norm: torch.Tensor) -> torch.Tensor:
        """Log-probability of the end token, `[B * beams, 1]`."""
        if self.eos_token_id is None:
            return torch.zeros_like(norm)
        return logits[:, [self.eos_token_id if tokens is None else -1]] - norm

    def _collect(self, scores: torch.Tensor, beam: torch.Tensor, depth: int) -> None:
        """Keeps the best of the sequences found before and of those that `beam [B, num_beams]` ends."""
        ranks = reference.rank(self.trie, self.node, torch.full_like(self.node, depth)).gather(1, beam)
        ranks = ranks.where(scores > float("-inf"), -1)
        self.found_scores, order = torch.cat([self.found_scores, scores], 1).topk(self.num_beams)
        self.found_ranks = torch.cat([self.found_ranks, ranks], 1).gather(1, order)
