"""`StaticIndex`: the set of sequences that may be decoded, as a trie in CSR form."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch

from ..kernels.static import reference
from ..kernels.static.reference import PAD, Trie
from .build import number_nodes, sort_sequences
from .eligible import propagate
from .items import ItemIds
from .saving import Saved
from .sequences import read_sequences


@dataclass(frozen=True, eq=False, repr=False)
class StaticIndex(Saved):
    """
    The sequences of tokens that may be decoded: semantic ids of a catalogue, names, codes (STATIC, arXiv 2602.22647).

    Immutable. The distinct sequences are sorted, and a sequence's **rank** in that order names it: decoding returns
    ranks, and `items(rank)` the ids that the user gave. Build one with `StaticIndex.build`.

    Attributes:
        vocab_size (`int`): size of the vocabulary that the tokens are from.
        trie (`Trie`): the sorted sequences and the nodes above them.
        item_ids (`ItemIds`, *optional*): the user's ids; without them an item is its sequence's rank.
        eligible (`torch.Tensor` of bool, `[items]`, *optional*): items that `subset` and `without` left; None for all.
    """

    vocab_size: int
    trie: Trie
    item_ids: ItemIds | None = None
    eligible: torch.Tensor | None = None

    @classmethod
    def build(cls, sequences: Any, *, vocab_size: int, item_ids: Sequence[Any] | None = None) -> Self:
        """
        Sorts the sequences, drops repetitions and numbers the nodes; input of any order will do.

        Args:
            sequences: 2-D integers (numpy, torch), a list of lists of integers of any lengths, or an iterator over
                chunks of either, which shows its progress.
            vocab_size (`int`): size of the model's vocabulary, `model.config.vocab_size`.
            item_ids (`Sequence[int | str]`, *optional*): one id per sequence. Sequences may repeat: each keeps its id.

        Raises:
            ValueError, TypeError: for tokens out of range, an empty sequence or none, numbers that are no integers,
                and ids that do not match; the message names the first one.
        """
        return cls._from_rows(*read_sequences(sequences, vocab_size), vocab_size, item_ids)

    # ------------------------------------------------------------ what is in it

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.trie.length

    @property
    def num_sequences(self) -> int:
        """Distinct sequences, eligible or not."""
        return len(self.trie.sequences)

    @property
    def num_items(self) -> int:
        return self.num_sequences if self.item_ids is None else len(self.item_ids)

    @cached_property
    def is_variable(self) -> bool:
        """Whether sequences differ in length, so that some may end where others go on."""
        return bool((self.trie.sequences[:, -1] == PAD).any())

    @cached_property
    def closing_token(self) -> int | None:
        """The one token that every sequence ends with, such as an end token that is part of them; None without one."""
        codes, sizes = self.trie.sequences, (self.trie.sequences != PAD).sum(1)
        last = self.trie.alphabet[self.trie.alphabet_start[sizes - 1] + codes.gather(1, sizes[:, None] - 1)[:, 0]]
        return int(last[0]) if bool((last == last[0]).all()) else None

    @cached_property
    def fingerprint(self) -> str:
        """Names the sequences, the vocabulary and what is eligible: equal sets have equal ones, on any machine."""
        digest = hashlib.sha256(
            f"{self.vocab_size} {self.trie.sequences.dtype} {tuple(self.trie.sequences.shape)}".encode()
        )
        for tensor in (self.trie.alphabet, self.trie.alphabet_start, self.trie.sequences, self.eligible):
            if tensor is not None:
                digest.update(memoryview(tensor.cpu().contiguous().numpy()).cast("B"))
        return digest.hexdigest()[:16]

    @property
    def nbytes(self) -> int:
        """Bytes of the trie; the item ids' come on top."""
        return sum(tensor.nbytes for tensor in self.trie[:-1] if tensor is not None)

    def describe(self) -> dict[str, Any]:
        """Counts, bytes and the shape of each level, ready for JSON."""
        sizes = self.trie.alphabet_start.diff().tolist()
        ids = [] if self.item_ids is None else [tensor.nbytes for tensor in self.item_ids if tensor is not None]
        return {
            "sequences": self.num_sequences,
            "items": self.num_items,
            "eligible_items": self.num_items if self.eligible is None else int(self.eligible.sum()),
            "length": self.length,
            "variable_length": self.is_variable,
            "vocab_size": self.vocab_size,
            "bytes": self.nbytes,
            "bytes_per_sequence": round(self.nbytes / self.num_sequences, 2),
            "item_id_bytes": sum(ids),
            "fingerprint": self.fingerprint,
            "levels": [
                {"tokens": tokens, "nodes": high - low, "most_children": width}
                for tokens, (low, high), width in zip(sizes, self.trie.levels()[1:], self.trie.widths)
            ],
        }

    def __repr__(self) -> str:
        kind = f"up to {self.length}" if self.is_variable else str(self.length)
        return (
            f"StaticIndex({self.num_sequences:,} sequences of {kind} tokens, {self.num_items:,} items, "
            f"vocab_size={self.vocab_size}, {self.nbytes / 1e6:,.1f} MB)"
        )

    # ------------------------------------------------------------ sequences, ranks and items

    def items(self, rank: int) -> list[int | str]:
        """The eligible items of a sequence: their ids, or the rank itself where the index has none."""
        if not 0 <= rank < self.num_sequences:
            raise IndexError(f"rank={rank} is out of range: the index has {self.num_sequences} sequences.")
        if self.item_ids is None:
            return [rank] if self.eligible is None or self.eligible[rank] else []
        begin, end = self.item_ids.begin[rank : rank + 2].tolist()
        return [self.item_ids.at(at) for at in range(begin, end) if self.eligible is None or self.eligible[at]]

    def sequences(self, ranks: torch.Tensor) -> torch.Tensor:
        """Tokens of sequences by rank, int64 `[..., L]`, -1 behind the end of a shorter one and for rank -1."""
        codes = self.trie.sequences[ranks.clamp(min=0)].long()
        tokens = self.trie.alphabet[self.trie.alphabet_start[:-1] + codes.clamp(min=0)].long()
        return tokens.where((codes != PAD) & (ranks >= 0)[..., None], PAD)

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """
        Rank of the eligible sequence that each row of `tokens [R, T]` begins with, the longest; int64 `[R]`, -1 if it
        begins with none. What follows, such as an end token and padding, is not judged.
        """
        trie, tokens = self.trie, tokens.to(self.device)
        node = torch.zeros(len(tokens), dtype=torch.int64, device=self.device)
        ranks = torch.full_like(node, -1)
        for depth in range(min(tokens.shape[1], self.length)):
            at = torch.full_like(node, depth)
            whole = reference.rank(trie, node, at)
            ranks = ranks.where(whole < 0, whole)
            node = reference.step(trie, node, at, tokens[:, depth])
        whole = reference.rank(trie, node, torch.full_like(node, min(tokens.shape[1], self.length)))
        return ranks.where(whole < 0, whole)

    # ------------------------------------------------------------ other indexes from this one

    def subset(self, items: Collection[Any]) -> Self:
        """
        The index in which only some of the eligible items are left; it shares this one's memory.

        Args:
            items: a bool mask over the items in the order of their ranks (`item_ids.tolist()`), or the items
                themselves: ids, or ranks where the index has no ids.
        """
        return self._with_eligible(self._mask(items))

    def without(self, items: Collection[Any]) -> Self:
        """The index without some items, given as for `subset`."""
        return self._with_eligible(~self._mask(items))

    def extend(self, sequences: Any, *, item_ids: Sequence[Any] | None = None) -> Self:
        """
        The index with more sequences, given as for `build`: a new build from both, in which items that are no longer
        eligible are left out for good.
        """
        if (item_ids is None) != (self.item_ids is None):
            raise ValueError("An index is extended with item_ids if, and only if, it was built with them.")
        keep = np.arange(self.num_items) if self.eligible is None else np.flatnonzero(self.eligible.numpy())
        ranks = torch.from_numpy(keep)
        if self.item_ids is not None:
            ranks = torch.searchsorted(self.item_ids.begin.long(), ranks, right=True) - 1
            known = self.item_ids.tolist()
            item_ids = [*(known[at] for at in keep), *(item_ids or ())]
        mine = self.sequences(ranks.to(self.device)).cpu().numpy()
        more, more_lengths = read_sequences(sequences, self.vocab_size)
        tokens = np.zeros((len(mine) + len(more), max(self.length, more.shape[1])), dtype=np.int32)
        tokens[: len(mine), : self.length] = mine
        tokens[len(mine) :, : more.shape[1]] = more
        lengths = np.concatenate([(mine != PAD).sum(1), more_lengths])
        return self._from_rows(tokens, lengths, self.vocab_size, item_ids)

    def to(self, device: torch.device | str) -> Self:
        """The index with its trie on another device; item ids stay on the CPU."""
        moved = [None if tensor is None else tensor.to(device) for tensor in self.trie[:-1]]
        return replace(self, trie=Trie(*moved, self.trie.widths))

    @property
    def device(self) -> torch.device:
        return self.trie.code.device

    # ------------------------------------------------------------ steps of the above

    @classmethod
    def _from_rows(cls, tokens: np.ndarray, lengths: np.ndarray, vocab_size: int, item_ids: Any) -> Self:
        ordered = sort_sequences(tokens, lengths)
        ids = None if item_ids is None else ItemIds.build(item_ids, ordered.order, ordered.rank)
        return cls(vocab_size, number_nodes(ordered.codes, ordered.alphabet, ordered.alphabet_start), ids)

    def _mask(self, items: Collection[Any]) -> np.ndarray:
        """Bool `[items]` from what `subset` takes."""
        given = np.asarray(items.cpu() if isinstance(items, torch.Tensor) else list(items))
        if given.dtype == bool:
            if given.shape != (self.num_items,):
                raise ValueError(
                    f"The mask has shape {given.shape}; it must hold one bool per item: {self.num_items}."
                )
            return given
        if self.item_ids is not None:
            return self.item_ids.mask(given.tolist())
        ranks = np.unique(given.astype(np.int64))
        if len(ranks) and (ranks[0] < 0 or ranks[-1] >= self.num_sequences):
            raise ValueError(
                f"Ranks run from {ranks[0]} to {ranks[-1]}; the index has {self.num_sequences} sequences and no "
                "item_ids, so its items are the ranks from 0."
            )
        mask = np.zeros(self.num_items, dtype=bool)
        mask[ranks] = True
        return mask

    def _with_eligible(self, mask: np.ndarray) -> Self:
        eligible = torch.from_numpy(mask.copy())
        if self.eligible is not None:
            eligible &= self.eligible
        if not eligible.any():
            raise ValueError("No item is left: an index needs at least one eligible item.")
        begin = None if self.item_ids is None else self.item_ids.begin
        return replace(self, trie=propagate(self.trie, eligible, begin), eligible=eligible)
