"""`StaticIndex`: the set of sequences that may be decoded, as a trie in CSR form."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..kernels.static import reference
from ..kernels.static.reference import PAD, Trie
from .build import number_nodes, sort_sequences
from .eligible import propagate
from .fingerprint import fingerprint
from .items import Ids, ItemIds
from .merge import eligible_codes, merge
from .priors import LogPriors, hand_up
from .saving import Saved
from .sequences import as_array, as_tokens, read_chunk, read_sequences
from .texts import tokenize


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
    def build(cls, sequences: Any, *, vocab_size: int, item_ids: Any = None) -> Self:
        """
        Sorts the sequences, drops repetitions and numbers the nodes; input of any order will do.

        Args:
            sequences: 2-D integers (numpy, torch, pandas), a list or column of lists of integers of any lengths, or an
                iterator over chunks of either, which shows its progress.
            vocab_size (`int`): size of the model's vocabulary, `model.config.vocab_size`.
            item_ids (*optional*): integers or strings, one per sequence, in a list, an array or a column of a table,
                one after the other as they stand. Sequences may repeat: each keeps its id.

        Raises:
            ValueError, TypeError: for tokens out of range, an empty sequence or none, numbers that are no integers,
                and ids that do not match; the message names the first one.
        """
        vocab_size = operator.index(vocab_size)
        ordered = sort_sequences(*read_sequences(sequences, vocab_size))
        trie = number_nodes(ordered.codes, ordered.alphabet, ordered.alphabet_start)
        ids = None
        if item_ids is not None:
            every = Ids.read(item_ids, len(ordered.order))
            ids = ItemIds.arrange(every.take(ordered.order), ordered.order, ordered.rank)
        return cls(vocab_size, trie, ids)

    @classmethod
    def from_texts(
        cls,
        texts: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocab_size: int | None = None,
        item_ids: Any = None,
        leading_space: bool = True,
        eos_token_id: int | None = None,
    ) -> Self:
        """
        An index of texts as a model writes them: names, titles, labels. Each ends with the end token, which tells
        "New York" from "New York City"; give it to a processor too, as `eos_token_id=`.

        Args:
            texts: a list or a column of strings.
            vocab_size (`int`, *optional*): size of the model's vocabulary, where it is not `len(tokenizer)`.
            item_ids (*optional*): as for `build`; by default an item's id is its text.
            leading_space (`bool`, defaults to `True`): whether a space stands before a text, as behind "Answer:". Pass
                False where prompts end in a new line, or in a chat template.
            eos_token_id (`int`, *optional*): the end token, where it is not the tokenizer's.
        """
        ends = as_tokens(tokenizer.eos_token_id if eos_token_id is None else eos_token_id, "eos_token_id")
        if len(ends) != 1:
            raise ValueError("The tokenizer has no end token: pass the one with which the model ends, eos_token_id=.")
        listed, sequences = tokenize(texts, tokenizer, leading_space, ends[0])
        size = len(tokenizer) if vocab_size is None else vocab_size
        return cls.build(sequences, vocab_size=size, item_ids=listed if item_ids is None else item_ids)

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
    def inner_tokens(self) -> frozenset[int]:
        """Tokens behind which some sequence goes on: as end tokens they would cut it off."""
        found: set[int] = set()
        for level in range(self.length - 1):
            codes = self.trie.sequences[self.trie.sequences[:, level + 1] != PAD, level].long()
            found.update(self.trie.alphabet[self.trie.alphabet_start[level] + codes.unique()].tolist())
        return frozenset(found)

    @cached_property
    def fingerprint(self) -> str:
        """Names the vocabulary, the eligible sequences and their items' ids: equal sets have equal ones, anywhere."""
        return fingerprint(self.vocab_size, self.trie, self.item_ids, self.eligible)

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
        rank = operator.index(rank)
        if not 0 <= rank < self.num_sequences:
            raise IndexError(f"rank={rank} is out of range: the index has {self.num_sequences} sequences.")
        if self.item_ids is None:
            return [rank] if self.eligible is None or self.eligible[rank] else []
        begin, end = self.item_ids.begin[rank : rank + 2].tolist()
        return [self.item_ids.at(at) for at in range(begin, end) if self.eligible is None or self.eligible[at]]

    def sequences(self, ranks: Any) -> torch.Tensor:
        """
        Tokens of sequences by rank, int64 `[..., L]`, -1 behind the end of a shorter one and for rank -1. Ranks come
        as a tensor, an array, a list or a number.
        """
        ranks = torch.as_tensor(ranks, device=self.device)
        if ranks.is_floating_point() and ranks.numel():
            raise TypeError(f"Ranks are {ranks.dtype}; they are integers.")
        ranks = ranks.long()
        if ranks.numel() and not -1 <= int(ranks.min()) <= int(ranks.max()) < self.num_sequences:
            raise IndexError(
                f"Ranks run from {int(ranks.min())} to {int(ranks.max())}; the index has {self.num_sequences} "
                "sequences, ranked from 0, and -1 stands for none."
            )
        codes = self.trie.sequences[ranks.clamp(min=0)].long()
        tokens = self.trie.alphabet[self.trie.alphabet_start[:-1] + codes.clamp(min=0)].long()
        return tokens.where((codes != PAD) & (ranks >= 0)[..., None], PAD)

    def lookup(self, tokens: Any) -> torch.Tensor:
        """
        Rank of the eligible sequence that each row of `tokens [R, T]` begins with, the longest; int64 `[R]`, -1 if it
        begins with none. What follows, such as an end token and padding, is not judged. Tokens come as for `build`,
        and -1 is no token.
        """
        if not isinstance(tokens, torch.Tensor):
            rows, lengths = read_chunk(tokens)
            tokens = torch.from_numpy(np.where(np.arange(rows.shape[1]) < lengths[:, None], rows.astype(np.int64), -1))
        if tokens.dim() != 2:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; pass 2-D rows, [tokens] for a single one.")
        trie, tokens = self.trie, tokens.to(self.device).long()
        node = torch.zeros(len(tokens), dtype=torch.int64, device=self.device)
        ranks = torch.full_like(node, -1)
        for depth in range(min(tokens.shape[1], self.length)):
            at = torch.full_like(node, depth)
            whole = reference.rank(trie, node, at)
            ranks = ranks.where(whole < 0, whole)
            node = reference.step(trie, node, at, tokens[:, depth])
        whole = reference.rank(trie, node, torch.full_like(node, min(tokens.shape[1], self.length)))
        return ranks.where(whole < 0, whole)

    def allowed_tokens(self, prefix: Any, eos_token_id: int | Sequence[int] | None = None) -> list[int]:
        """
        The tokens that may follow `prefix`, ascending: what an engine needs that has its own masks. `eos_token_id` may
        follow a whole sequence, and one that has left the index.
        """
        ends = as_tokens(eos_token_id, "eos_token_id")
        tokens = torch.tensor([as_tokens(prefix, "prefix")], dtype=torch.int64, device=self.device)
        node, depth = reference.walk(self.trie, tokens, torch.zeros(1, dtype=torch.int64, device=self.device))
        entry, _, legal = reference.continuations(self.trie, node, depth, max(self.trie.widths))
        allowed = set(self.trie.alphabet[entry[legal]].tolist())
        if int(node) < 0 or bool(reference.is_whole(self.trie, node, depth)):
            allowed.update(ends)
        return sorted(allowed)

    def log_priors(self, values: Any) -> LogPriors:
        """
        What is known of the items beforehand, for `constrained_beam_search` and `StaticLogitsProcessor`, which add it
        to their scores. Items that share a sequence have the best of their values.

        Args:
            values: a number for each item in the order of `build` (of the ranks, where the index has no `item_ids`),
                or a mapping from ids to numbers, 0 for all others. Logarithms, so 0 changes nothing.
        """
        if isinstance(values, Mapping):
            given = np.zeros(self.num_items, dtype=np.float32)
            for item, value in values.items():
                given[self._mask([item], None)] = value
        else:
            given = np.asarray(as_array(values), dtype=np.float32)
            if given.shape == (self.num_items,) and self.item_ids is not None:
                given = given[self.item_ids.row.numpy()]
        if given.shape != (self.num_items,) or not np.isfinite(given).all():
            raise ValueError(
                f"log-priors have shape {given.shape}; they must be finite numbers, one for each of {self.num_items} "
                "items."
            )
        begin = None if self.item_ids is None else self.item_ids.begin
        return LogPriors(self, *hand_up(self.trie, given, self.eligible, begin))

    # ------------------------------------------------------------ other indexes from this one

    def subset(self, items: Any = None, *, ranks: Any = None) -> Self:
        """
        The index in which only some of the eligible items are left; it shares this one's memory.

        Args:
            items: ids, or a bool mask over the items in the order in which `build` got them (those that `extend` added
                come last). Where the index has no `item_ids`, its items are its ranks, and a mask goes to `ranks`.
            ranks: instead of `items`, ranks of sequences, or a bool mask over the sorted sequences.
        """
        return self._with_eligible(self._mask(items, ranks))

    def without(self, items: Any = None, *, ranks: Any = None) -> Self:
        """The index without some items, given as for `subset`."""
        return self._with_eligible(~self._mask(items, ranks))

    def extend(self, sequences: Any, *, item_ids: Any = None) -> Self:
        """
        The index with more sequences, given as for `build`, in which items that are no longer eligible are left out
        for good. The new sequences are put between the sorted ones, which costs a copy of the index.
        """
        if (item_ids is None) != (self.item_ids is None):
            raise ValueError("An index is extended with item_ids if, and only if, it was built with them.")
        new = sort_sequences(*read_sequences(sequences, self.vocab_size))
        merged = merge(eligible_codes(self.trie), new)
        trie = number_nodes(merged.codes, merged.alphabet, merged.alphabet_start)
        ids = None
        if self.item_ids is not None:
            more = Ids.read(item_ids, len(new.order)).take(new.order)
            ids = self.item_ids.extend(self.eligible, merged.old_rank, more, new.order, merged.new_rank[new.rank])
        return type(self)(self.vocab_size, trie.to(self.device), ids)

    def to(self, device: torch.device | str) -> Self:
        """The index with its trie on another device; item ids stay on the CPU."""
        return replace(self, trie=self.trie.to(device))

    @property
    def device(self) -> torch.device:
        return self.trie.code.device

    # ------------------------------------------------------------ steps of the above

    def _mask(self, items: Any, ranks: Any) -> np.ndarray:
        """Bool `[items]` from what `subset` takes."""
        if (items is None) == (ranks is None):
            raise ValueError("Pass either items, or ranks=.")
        given = as_array(items if ranks is None else ranks)
        if ranks is None and self.item_ids is not None:
            if given.dtype != bool:
                return self.item_ids.mask(given)
            return _flags(given, self.num_items, "items, in the order in which they were built")[self.item_ids.row]
        if ranks is None and given.dtype == bool:
            raise ValueError(
                "A mask over items is in the order in which they were built, which an index without item_ids does not "
                "keep: build it with item_ids=, such as range(n), or pass a mask over its sorted sequences as ranks=."
            )
        chosen = _flags(given, self.num_sequences, "sequences")
        return chosen if self.item_ids is None else np.repeat(chosen, np.diff(self.item_ids.begin.numpy()))

    def _with_eligible(self, mask: np.ndarray) -> Self:
        eligible = torch.from_numpy(mask)
        if self.eligible is not None:
            eligible = eligible & self.eligible
        if not eligible.any():
            raise ValueError("No item is left: an index needs at least one eligible item.")
        if eligible.all() or (self.eligible is not None and torch.equal(eligible, self.eligible)):
            return self
        begin = None if self.item_ids is None else self.item_ids.begin
        return replace(self, trie=propagate(self.trie, eligible, begin), eligible=eligible)


def _flags(given: np.ndarray, count: int, what: str) -> np.ndarray:
    """Bool `[count]` from a mask of that shape, or from places."""
    if given.dtype == bool:
        if given.shape != (count,):
            raise ValueError(f"The mask has shape {given.shape}; it must hold one bool for each of {count} {what}.")
        return given.copy()
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"Ranks are integers or a mask, not {given.dtype} such as {given.flat[0]!r}.")
    if given.size and (given.min() < 0 or given.max() >= count):
        raise ValueError(
            f"Ranks run from {given.min()} to {given.max()}; the index has {count} sequences, ranked from 0. Without "
            "item_ids, its items are these ranks."
        )
    flags = np.zeros(count, dtype=bool)
    flags[given.astype(np.int64)] = True
    return flags
