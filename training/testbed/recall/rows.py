"""Training rows of the recall task: a document in which keys are asked again and again, with real text between.

A row draws keys with replacement. The first time a key comes it is a needle, afterwards it is a question whose answer
counts; more questions may close the row. So one row holds dozens of lookups at all distances.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .needles import interleave, key_ids, random_stretch, value_ids
from .text import ASK

IGNORED, TEXT, ANSWER = 0, 1, 2


@dataclass
class Batch:
    """Rows to train on.

    Attributes:
        ids: tokens `[batch, seq_len]`.
        kinds: what predicting each token counts as, `[batch, seq_len]`: `IGNORED`, `TEXT` or `ANSWER`.
        positions: RoPE positions `[batch, seq_len]`, ascending, with jumps where the row was stretched.
    """

    ids: Tensor
    kinds: Tensor
    positions: Tensor


class RowSampler:
    """Draws training batches; everything random comes from one seeded generator.

    Args:
        tokenizer: the testbed's tokenizer.
        text_ids: real text to fill rows with `[num_tokens]`.
        seed: seed of the generator.
        max_position: positions are stretched up to here.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, text_ids: Tensor, seed: int = 0, max_position: int = 32768
    ) -> None:
        self.text_ids = text_ids
        self.max_position = max_position
        self.generator = torch.Generator().manual_seed(seed)
        self.keys, self.values = key_ids(tokenizer), value_ids(tokenizer)
        self.ask = tokenizer.convert_tokens_to_ids(ASK)
        self.bos = tokenizer.bos_token_id

    def batch(self, rows: int, seq_len: int, keys: int, lookups: int, closing: int, stretch: bool) -> Batch:
        """`rows` rows of `seq_len` tokens.

        Args:
            keys: distinct keys a row draws from.
            lookups: keys drawn inside the row, needles and questions together.
            closing: further questions at the very end.
            stretch: jump to later positions at random places, so that short rows teach far distances.
        """
        made = [self._row(seq_len, keys, lookups, closing) for _ in range(rows)]
        ids, kinds = (torch.stack(column) for column in zip(*made))
        positions = torch.stack([self._positions(seq_len, stretch) for _ in range(rows)])
        return Batch(ids, kinds, positions)

    def _row(self, seq_len: int, keys: int, lookups: int, closing: int) -> tuple[Tensor, Tensor]:
        drawn = self._integers(keys, lookups)
        asked_last = drawn[self._integers(lookups, closing)] if closing else drawn[:0]
        pool = self.keys[torch.randperm(len(self.keys), generator=self.generator)[:keys]]
        pairs = self.values[self._integers(len(self.values), 2 * keys)].view(keys, 2)
        inserts, questions, seen = [], [], set()
        for index in torch.cat([drawn, asked_last]).tolist():
            body = torch.cat([pool[index : index + 1], pairs[index]])
            questions.append(index in seen)
            inserts.append(torch.cat([torch.tensor([self.ask]), body]) if index in seen else body)
            seen.add(index)
        filler = seq_len - 1 - sum(map(len, inserts))
        if filler < 0:
            raise ValueError(f"{lookups} + {closing} lookups do not fit in {seq_len} tokens; they need {-filler} more")
        places = torch.cat([self._integers(filler + 1, lookups).sort().values, torch.full((closing,), filler)])
        text = random_stretch(self.text_ids, filler, self.generator)
        ids, starts = interleave(text, inserts, places, self.bos)
        kinds = torch.full_like(ids, TEXT)
        kinds[0] = IGNORED
        for start, insert, question in zip(starts.tolist(), inserts, questions):
            kinds[start : start + len(insert)] = IGNORED
            if question:
                kinds[start + 2 : start + 4] = ANSWER
        return ids, kinds

    def _positions(self, seq_len: int, stretch: bool) -> Tensor:
        """Consecutive positions, broken by a few jumps of random size where `stretch`."""
        steps = torch.ones(seq_len, dtype=torch.int64)
        steps[0] = 0
        spare = self.max_position - seq_len
        if stretch and spare > 0:
            jumps = 1 + int(self._integers(16, 1))
            total = int(self._integers(spare + 1, 1))
            shares = torch.rand(jumps, generator=self.generator)
            where = self._integers(seq_len, jumps)
            steps.index_add_(0, where, (shares / shares.sum() * total).long())
        return steps.cumsum(0)

    def _integers(self, below: int, count: int) -> Tensor:
        return torch.randint(below, (count,), generator=self.generator)
