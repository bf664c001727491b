"""`StaticLogitsProcessor`: keeps `generate()` inside an index, whatever the decoding mode."""

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.utils import logging

from ..kernels.dispatch import choose
from ..kernels.static import reference
from ..kernels.static.reference import DEAD
from .index import StaticIndex
from .priors import LogPriors, require_priors_of
from .sequences import as_tokens

logger = logging.get_logger(__name__)
SURPLUS = -1e7  # transformers starts beams that stand for none with -1e9, and may divide by their length


class StaticLogitsProcessor(LogitsProcessor):
    """
    Leaves only tokens that lead to a sequence of the index (STATIC, arXiv 2602.22647).

    It walks each row's generated tokens again at every step, and so does not mind reordered beams, rejected drafts or
    several uses: greedy, sampling, beams and assisted decoding, decoder-only and encoder-decoder. Pass
    `length_penalty=0.0` to beams over sequences of several lengths, or longer ones are favoured.

    Args:
        index (`StaticIndex`, *optional*): what may be decoded.
        indexes (`Sequence[StaticIndex]`, *optional*): instead of `index`, several, one of which each prompt uses.
        index_ids (`Sequence[int]`, *optional*): with `indexes`, the one of each prompt in the batch.
        prompt_length (`int`, *optional*): length of `input_ids` when generation starts, left padding included: 1 for
            an encoder-decoder, 0 with `inputs_embeds`. A row is constrained from there on.
        anchor_token_id (`int | list[int]`, *optional*): instead of `prompt_length`, the token behind which a sequence
            starts, or several that must stand one after the other, such as those of "<item>". Rows are free until the
            model or the prompt writes it, and again behind the sequence, for several in one output.
        eos_token_id (`int | list[int]`, *optional*): what may follow a whole sequence. Needed where sequences differ
            in length and `prompt_length` is given, even if each brings its end token along, and where generation goes
            on behind a sequence's last token.
        log_priors (`LogPriors`, *optional*): of `index.log_priors(...)`, added to the sequences' scores on the way.
        in_place (`bool`, defaults to `True`): write into the scores that come in, which costs half as much in a wide
            vocabulary. Pass False for greedy search or sampling with `output_logits=True`, whose logits they are.

    Raises:
        ValueError: for settings that contradict each other, on creation; and in a call, for scores of another
            vocabulary and for rows that all lie outside the index because `prompt_length` belongs to other inputs.
    """

    supports_continuous_batching = False  # it hands over a row's last token only

    def __init__(
        self,
        index: StaticIndex | None = None,
        *,
        indexes: Sequence[StaticIndex] | None = None,
        index_ids: Sequence[int] | None = None,
        prompt_length: int | None = None,
        anchor_token_id: int | Sequence[int] | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        log_priors: LogPriors | None = None,
        in_place: bool = True,
    ):
        if (index is None) == (indexes is None) or (indexes is None) != (index_ids is None):
            raise ValueError("Pass either index=, or indexes= together with index_ids=.")
        if (prompt_length is None) == (anchor_token_id is None):
            raise ValueError("Pass either prompt_length= or anchor_token_id=, to say where a sequence starts.")
        self.indexes = [index] if index is not None else list(indexes or ())
        self.index_ids = None if index_ids is None else torch.as_tensor(index_ids, device="cpu")
        self.prompt_length = None if prompt_length is None else operator.index(prompt_length)
        self.anchor = torch.tensor(as_tokens(anchor_token_id, "anchor_token_id"), dtype=torch.int64, device="cpu")
        self.end_tokens = torch.tensor(as_tokens(eos_token_id, "eos_token_id"), dtype=torch.int64, device="cpu")
        self.in_place, self.log_priors = in_place, log_priors
        self._check_settings()
        self._dead_rows: torch.Tensor | int = 0
        self._seen: torch.Tensor | None = None  # input_ids of the last call, to tell a draft from a stale prompt

    @property
    def dead_rows(self) -> int:
        """Rows met so far whose tokens left the index: surplus beams, and drafts that will be rejected."""
        return int(self._dead_rows)

    def valid(self, output: Any) -> torch.Tensor:
        """
        Which rows of `generate`'s output, its `sequences [R, T]`, hold a whole sequence behind the prompt or the last
        anchor, bool `[R]`. With fewer sequences than beams, the surplus rows of a beam search hold none or repeat one;
        their `sequences_scores` are -1e9.
        """
        sequences = _sequences(output)
        start = self._starts(sequences)
        return (self._ranks(sequences, torch.arange(len(start), device=start.device), start) >= 0) & (start >= 0)

    def items(self, output: Any) -> list[list[int | str]]:
        """
        The items that each row of `generate`'s output holds, behind the prompt or behind each of its anchors, in
        order.

        Args:
            output: what `generate` returned: `sequences [R, T]`, or an object that has them. Where it has
                `sequences_scores` too, the surplus rows of a beam search have no items.
        """
        sequences = _sequences(output)
        if self.prompt_length is None:
            row, start = self._behind_anchors(sequences).nonzero(as_tuple=True)
        else:
            row, start = torch.arange(len(sequences), device=sequences.device), self._starts(sequences)
        number, ranks = self._row_index(len(sequences)), self._ranks(sequences, row, start).tolist()
        scores = getattr(output, "sequences_scores", None)
        is_surplus = [False] * len(sequences) if scores is None else (scores <= SURPLUS).tolist()
        found: list[list[int | str]] = [[] for _ in range(len(sequences))]
        for at, rank in zip(row.tolist(), ranks, strict=True):
            if rank >= 0 and not is_surplus[at]:
                found[at] += self.indexes[int(number[at])].items(rank)
        return found

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        start, end_tokens = self._starts(input_ids), self.end_tokens.to(scores.device)
        forced = None if scores.is_cuda else _forced_token(scores[:1])  # no wait for the device
        if not self.in_place:
            scores = scores.clone()
        dead, blocked = [], []
        for number, index in enumerate(self.indexes):
            _check_match(index, scores)
            mine = start
            if self.index_ids is not None:
                mine = start.where(self._row_index(len(start)) == number, -1)
            kernels = choose("static_constrain", scores.device).module
            scores, node, is_blocked = kernels.constrain(
                index.trie, input_ids, mine, scores, end_tokens, self.prompt_length is None
            )
            dead.append(node == DEAD)
            blocked.append(is_blocked)
        if self.log_priors is not None:
            self._add_priors(self.log_priors, input_ids, start, scores)
        num_dead, is_blocked = reduce(torch.bitwise_or, dead).sum(), reduce(torch.bitwise_or, blocked)
        self._dead_rows = self._dead_rows + num_dead
        if self.prompt_length is not None:
            self._refuse_stale_prompt(input_ids, num_dead)
        if not is_blocked.is_cuda and is_blocked.any():  # no wait for the device just to warn
            if forced is not None and is_blocked[0]:
                raise ValueError(
                    f"Only token {forced} is left, and no sequence of the index goes on with it here: the generation "
                    "config's forced_bos_token_id or forced_eos_token_id leaves no other, as for BART. Pass "
                    "forced_bos_token_id=None, and max_new_tokens=index.length + 1, so that the end comes behind the "
                    "sequence."
                )
            logger.warning_once(
                "Another logits processor forbids every token with which a row could go on in the index; the row goes "
                "on all the same, with a score of -10,000 for each. min_new_tokens, no_repeat_ngram_size, repetition "
                "penalties and bad_words_ids of the generation config can do that."
            )
        return scores

    def _add_priors(
        self, log_priors: LogPriors, input_ids: torch.Tensor, start: torch.Tensor, scores: torch.Tensor
    ) -> None:
        trie = self.indexes[0].trie
        node, depth = reference.walk(trie, input_ids, start)
        entry, after, legal = reference.continuations(trie, node, depth, max(trie.widths))
        on, ending = log_priors.gains(node, depth, after)
        first = log_priors.node[0].where(depth == 0, 0)  # with which a search starts, so that scores are the same
        on = (on + first[:, None]).masked_fill(~legal, 0.0).to(scores.dtype)
        scores.scatter_add_(1, trie.alphabet[entry].long(), on)
        scores[:, self.end_tokens.to(scores.device)] += ending[:, None].to(scores.dtype)

    # ------------------------------------------------------------ where sequences start, and in which index

    def _starts(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Position of each row's first constrained token, int64 `[R]`; -1 for a row without an anchor."""
        rows, length = input_ids.shape
        if self.prompt_length is None:
            position = torch.arange(length + 1, device=input_ids.device)
            return torch.where(self._behind_anchors(input_ids), position, -1).amax(1)
        if length < self.prompt_length:
            raise ValueError(
                f"prompt_length={self.prompt_length}, but input_ids hold {length} tokens: make a processor for each "
                "length of prompt, with prompt_length=input_ids.shape[1] (1 for an encoder-decoder, 0 with "
                "inputs_embeds), or one with anchor_token_id=."
            )
        return torch.full((rows,), self.prompt_length, dtype=torch.int64, device=input_ids.device)

    def _behind_anchors(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Whether an anchor ends right before each position, up to that behind the last token; bool `[R, T + 1]`."""
        (rows, length), size = input_ids.shape, len(self.anchor)
        behind = torch.zeros(rows, length + 1, dtype=torch.bool, device=input_ids.device)
        if length >= size:
            behind[:, size:] = (input_ids.unfold(1, size, 1) == self.anchor.to(input_ids.device)).all(2)
        return behind

    def _ranks(self, sequences: torch.Tensor, row: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Rank of the sequence that begins at position `start [n]` of rows `row [n]`, int64; -1 if none does."""
        found = torch.full_like(start, -1)
        index_of = self._row_index(len(sequences)).to(row.device)[row]
        for number, index in enumerate(self.indexes):
            position = start.clamp(min=0)[:, None] + torch.arange(index.length, device=start.device)
            tokens = sequences[row[:, None], position.clamp(max=max(sequences.shape[1] - 1, 0))]
            ranks = index.lookup(tokens.where(position < sequences.shape[1], -1)).to(found.device)
            found = ranks.where(index_of == number, found)
        return found

    def _row_index(self, rows: int) -> torch.Tensor:
        """Number of each row's index, `[R]`; a prompt's beams or samples are neighbouring rows."""
        if self.index_ids is None:
            return torch.zeros(rows, dtype=torch.int64, device=self.indexes[0].device)
        if rows % len(self.index_ids):
            raise ValueError(
                f"index_ids name an index for {len(self.index_ids)} prompts, which {rows} rows are no multiple of; "
                "pass one for each prompt of the batch."
            )
        per_prompt = rows // len(self.index_ids)
        return self.index_ids.repeat_interleave(per_prompt).to(self.indexes[0].device)

    # ------------------------------------------------------------ checks

    def _check_settings(self) -> None:
        if self.prompt_length is not None and self.prompt_length < 0:
            raise ValueError(f"prompt_length={self.prompt_length} must be at least 0.")
        if self.prompt_length is None and len(self.anchor) == 0:
            raise ValueError("anchor_token_id=[] holds no token behind which a sequence could start.")
        if self.index_ids is not None and not all(0 <= number < len(self.indexes) for number in self.index_ids):
            raise ValueError(f"index_ids={self.index_ids.tolist()} must each name one of {len(self.indexes)} indexes.")
        if self.log_priors is not None and self.index_ids is not None:
            raise ValueError("log_priors= are those of one index: pass index=, not indexes=.")
        require_priors_of(self.indexes[0], self.log_priors)
        for index in self.indexes:
            if index.is_variable and len(self.end_tokens) == 0 and self.prompt_length is not None:
                raise ValueError(
                    "The index holds sequences of several lengths, so eos_token_id= is needed: it is how a row says "
                    "that its sequence ends here, and how generate() knows. Where every sequence brings its end token "
                    "along, pass that."
                )
            for token in self.end_tokens.tolist():
                _check_end_token(index, token)
            if _occurs_within(index, self.anchor.tolist()):
                raise ValueError(
                    f"anchor_token_id={self.anchor.tolist()} occurs within a sequence of the index, which it would "
                    "start anew: choose an anchor that no sequence holds."
                )

    def _refuse_stale_prompt(self, input_ids: torch.Tensor, num_dead: torch.Tensor) -> None:
        """
        A generation whose every row is off the index from its first call on was given another prompt's length. Later
        on, all rows may be off behind drafts that are yet to be rejected.
        """
        seen, self._seen = self._seen, input_ids
        if seen is not None and seen.shape != (input_ids.shape[0], input_ids.shape[1] - 1):
            seen = None  # another generation's
        if seen is not None and num_dead.is_cuda:
            return  # no wait for the device within a generation
        if num_dead == len(input_ids) and (seen is None or not torch.equal(seen, input_ids[:, :-1])):
            raise ValueError(
                f"No row goes on in the index behind prompt_length={self.prompt_length}, of {input_ids.shape[1]} "
                "tokens: the processor was made for inputs of another length. Make one for these inputs, or use "
                "anchor_token_id=."
            )


def _sequences(output: Any) -> torch.Tensor:
    """The token ids `[R, T]` in what `generate` returned, on the device where they are."""
    sequences = getattr(output, "sequences", output)
    return sequences if isinstance(sequences, torch.Tensor) else torch.as_tensor(sequences, device="cpu")


def _forced_token(scores: torch.Tensor) -> int | None:
    """The token that transformers' forcing processors left of the row `scores [1, V]`, with a score of 0."""
    if float("-inf") not in scores[0, :2].tolist():  # as nearly always; of two, one is if only one is left at all
        return None
    left = (scores > float("-inf")).nonzero()[:, 1]
    return int(left[0]) if len(left) == 1 and scores[0, left[0]] == 0 else None


def _check_match(index: StaticIndex, scores: torch.Tensor) -> None:
    if scores.shape[1] != index.vocab_size:
        raise ValueError(
            f"The model scores {scores.shape[1]} tokens, the index was built for vocab_size={index.vocab_size}; "
            f"build it with vocab_size={scores.shape[1]} and this model's tokens."
        )
    if index.device != scores.device:
        raise ValueError(
            f"The index is on {index.device}, the scores on {scores.device}: move it with "
            f"index.to({str(scores.device)!r})."
        )


def _check_end_token(index: StaticIndex, token: int) -> None:
    if not 0 <= token < index.vocab_size:
        raise ValueError(f"eos_token_id={token} lies outside the index's vocabulary of {index.vocab_size}.")
    if (index.trie.alphabet == token).any() and token in index.inner_tokens:
        logger.warning_once(
            f"eos_token_id={token} stands inside sequences of the index: generate() ends there, and these sequences "
            "never come out whole. Leave them out of the index, or use constrained_beam_search, which reads on."
        )


def _occurs_within(index: StaticIndex, anchor: list[int]) -> bool:
    """Whether an anchor can end within a sequence of the index: all of it there, or the first part before it."""
    trie, bounds = index.trie, index.trie.alphabet_start.tolist()
    if not anchor or not (trie.alphabet == anchor[-1]).any():
        return False
    for last in range(trie.length):  # the position of the anchor's last token in the sequence
        found = torch.ones(len(trie.sequences), dtype=torch.bool, device=trie.code.device)
        for back, token in enumerate(reversed(anchor)):
            level = last - back
            if level < 0:  # the end of the anchor that the sequence stands behind
                found &= anchor[level] == token if -level <= len(anchor) else False
                continue
            code = (trie.alphabet[bounds[level] : bounds[level + 1]] == token).nonzero()
            found &= trie.sequences[:, level] == code[0, 0] if len(code) else torch.zeros_like(found)
        if found.any():
            return True
    return False
