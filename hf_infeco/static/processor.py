"""`StaticLogitsProcessor`: keeps `generate()` inside an index, whatever the decoding mode."""

from collections.abc import Sequence
from functools import reduce

import torch
from transformers import LogitsProcessor
from transformers.utils import logging

from ..kernels.dispatch import choose
from ..kernels.static.reference import DEAD
from .index import StaticIndex

logger = logging.get_logger(__name__)


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
        anchor_token_id (`int`, *optional*): instead of `prompt_length`, the token behind which a sequence starts. Rows
            are free until the model or the prompt writes it, and again behind the sequence, for several in one output.
        eos_token_id (`int | list[int]`, *optional*): what may follow a whole sequence. Needed where sequences differ
            in length and `prompt_length` is given, and where generation goes on behind a sequence's last token.
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
        anchor_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        in_place: bool = True,
    ):
        if (index is None) == (indexes is None) or (indexes is None) != (index_ids is None):
            raise ValueError("Pass either index=, or indexes= together with index_ids=.")
        if (prompt_length is None) == (anchor_token_id is None):
            raise ValueError("Pass either prompt_length= or anchor_token_id=, to say where a sequence starts.")
        self.indexes = [index] if index is not None else list(indexes or ())
        self.index_ids = None if index_ids is None else torch.as_tensor(index_ids, device="cpu")
        self.prompt_length, self.anchor_token_id, self.in_place = prompt_length, anchor_token_id, in_place
        ends = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
        self.end_tokens = torch.tensor(ends, dtype=torch.int64, device="cpu")
        self._check_settings()
        self._dead_rows: torch.Tensor | int = 0
        self._seen: torch.Tensor | None = None  # input_ids of the last call, to tell a draft from a stale prompt

    @property
    def dead_rows(self) -> int:
        """Rows met so far whose tokens left the index: surplus beams, and drafts that will be rejected."""
        return int(self._dead_rows)

    def valid(self, sequences: torch.Tensor) -> torch.Tensor:
        """
        Which rows of `generate`'s output `[R, T]` hold a whole sequence behind the prompt or the last anchor, bool
        `[R]`. With fewer sequences than beams, the surplus rows of a beam search hold none or repeat one; their
        `sequences_scores` are -1e9.
        """
        start, row_index = self._starts(sequences), self._row_index(len(sequences))
        found = torch.zeros(len(sequences), dtype=torch.bool, device=sequences.device)
        for number, index in enumerate(self.indexes):
            span = torch.arange(index.length, device=sequences.device)
            position = start.clamp(min=0)[:, None] + span
            is_there = (position < sequences.shape[1]) & (start >= 0)[:, None]
            tokens = sequences.gather(1, position.clamp(max=sequences.shape[1] - 1)).where(is_there, -1)
            ranks = index.lookup(tokens).to(found.device)
            found |= (ranks >= 0) & (row_index == number)
        return found

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        start, end_tokens = self._starts(input_ids), self.end_tokens.to(scores.device)
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
                index.trie, input_ids, mine, scores, end_tokens, self.anchor_token_id is not None
            )
            dead.append(node == DEAD)
            blocked.append(is_blocked)
        num_dead, is_blocked = reduce(torch.bitwise_or, dead).sum(), reduce(torch.bitwise_or, blocked)
        self._dead_rows = self._dead_rows + num_dead
        if self.prompt_length is not None:
            self._refuse_stale_prompt(input_ids, num_dead)
        if not is_blocked.is_cuda and is_blocked.any():  # no wait for the device just to warn
            logger.warning_once(
                "Another logits processor forbids every token with which a row could go on in the index; the row goes "
                "on all the same, with the lowest score. min_new_tokens, no_repeat_ngram_size, repetition penalties "
                "and bad_words_ids of the generation config can do that."
            )
        return scores

    # ------------------------------------------------------------ where sequences start, and in which index

    def _starts(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Position of each row's first constrained token, int64 `[R]`; -1 for a row without an anchor."""
        rows, length = input_ids.shape
        if self.prompt_length is None:
            position = torch.arange(1, length + 1, device=input_ids.device)
            behind = torch.where(input_ids == self.anchor_token_id, position, -1)
            return behind.amax(1) if length else behind.new_full((rows,), -1)
        if length < self.prompt_length:
            raise ValueError(
                f"prompt_length={self.prompt_length}, but input_ids hold {length} tokens: make a processor for each "
                "length of prompt, with prompt_length=input_ids.shape[1] (1 for an encoder-decoder, 0 with "
                "inputs_embeds), or one with anchor_token_id=."
            )
        return torch.full((rows,), self.prompt_length, dtype=torch.int64, device=input_ids.device)

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
        if self.index_ids is not None and not all(0 <= number < len(self.indexes) for number in self.index_ids):
            raise ValueError(f"index_ids={self.index_ids.tolist()} must each name one of {len(self.indexes)} indexes.")
        for index in self.indexes:
            ends_itself = not index.is_variable or index.closing_token is not None
            if not ends_itself and len(self.end_tokens) == 0 and self.prompt_length is not None:
                raise ValueError(
                    "The index holds sequences of several lengths, so eos_token_id= is needed: it is how a row says "
                    "that its sequence ends here. It may also be the last token of every sequence."
                )
            for token in self.end_tokens.tolist():
                if not 0 <= token < index.vocab_size:
                    raise ValueError(
                        f"eos_token_id={token} lies outside the index's vocabulary of {index.vocab_size}."
                    )
            if self.anchor_token_id is not None and (index.trie.alphabet == self.anchor_token_id).any():
                raise ValueError(
                    f"anchor_token_id={self.anchor_token_id} is a token of the index; an anchor must not occur within "
                    "a sequence, which it would start anew."
                )

    def _refuse_stale_prompt(self, input_ids: torch.Tensor, num_dead: torch.Tensor) -> None:
        """
        A generation whose every row is off the index from its first call on was given another prompt's length. Later
        on, all rows may be off behind drafts that are yet to be rejected.
        """
        seen, self._seen = self._seen, input_ids
        goes_on = seen is not None and seen.shape == (input_ids.shape[0], input_ids.shape[1] - 1)
        if goes_on and num_dead.is_cuda:
            return  # no wait for the device within a generation
        if num_dead == len(input_ids) and not (goes_on and torch.equal(seen, input_ids[:, :-1])):
            raise ValueError(
                f"No row goes on in the index behind prompt_length={self.prompt_length}, of {input_ids.shape[1]} "
                "tokens: the processor was made for inputs of another length. Make one for these inputs, or use "
                "anchor_token_id=."
            )


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
