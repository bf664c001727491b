"""
Threads over KV caches: how a main thread and its side threads share tokens and go through the model.

`PackedThreads` holds all threads in one row and decodes them in the same forwards. `SeparateThreads` gives each a
cache of its own and takes them one after another, which any cache and any attention can do.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from .. import compat
from ..cache_operations import keep_tokens
from ..compat import CACHE_NAME
from ..dense_layer import DenseLayer
from ..edits import Edits
from ..kv import cache_nbytes
from .adapters import Adapters
from .memory import Span, evict, fork
from .packed_attention import PACKED_NAME, as_mask, use_packed_attention

MASKED_ATTENTION = ("sdpa", "eager", "infeco", PACKED_NAME)  # those that take a 4-D mask
Feed = tuple["Thread", list[int]]


class Thread:
    """
    One line of text over a cache.

    Attributes:
        position (`int`): of the next token; evicted tokens count.
        resident (`int`): tokens that it sees.
        parent (`Thread`, *optional*): that it was forked from.
        own (`int`): tokens that it has added since it was forked.
    """

    def __init__(self, adapters: tuple[str, ...], parent: "Thread | None" = None):
        self.adapters, self.parent, self.own = adapters, parent, 0
        self.position: int = 0 if parent is None else parent.position
        self.resident: int = 0 if parent is None else parent.resident
        self.cache: Cache | None = None  # of a separate thread
        self.sees = torch.zeros(0, dtype=torch.bool, device="cpu")  # slots of a packed one


class Threads(ABC):
    """
    Args:
        model (`PreTrainedModel`): a causal language model, or a PEFT model of one.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.adapters, self.edits = model, Adapters(model), Edits()
        self.threads: list[Thread] = []
        forward = getattr(model, "get_base_model", lambda: model)().forward
        self.takes_indices = "logits_to_keep" in compat.argument_names(forward)
        self.device = model.get_input_embeddings().weight.device

    @abstractmethod
    def open(self, adapters: tuple[str, ...]) -> Thread:
        """A thread that has seen nothing."""

    @abstractmethod
    def fork(self, thread: Thread, adapters: tuple[str, ...]) -> Thread:
        """A thread that has seen what this one has, in the same memory."""

    @abstractmethod
    def evict(self, thread: Thread, spans: Sequence[Span]) -> None:
        """Drops tokens from what a thread sees, by position, and frees those that no thread sees."""

    @abstractmethod
    def close(self, thread: Thread) -> None:
        """Forgets a thread, and frees what only it saw."""

    def finish(self) -> None:
        """Gives the caches' memory back, and leaves the model as it was."""
        for thread in list(self.threads):
            self.close(thread)
        self.adapters.restore()
        self.edits.undo()

    @abstractmethod
    def step(self, feeds: Sequence[Feed]) -> list[Tensor]:
        """Gives each thread its next tokens; returns the logits `[V]` behind each one's last, float32."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all caches."""

    def _call(self, cache: Cache | None, tokens: list[int], positions: list[int], last: list[int], mask: Any) -> Any:
        """The model's output for one row of tokens, with the logits `[1, len(last), V]` of some of them."""
        kwargs: dict[str, Any] = {"attention_mask": mask, "use_cache": True, "return_dict": True}
        if cache is not None:
            kwargs[CACHE_NAME] = cache
        ids, places, index = (
            torch.tensor([each], dtype=torch.long, device=self.device) for each in (tokens, positions, last)
        )
        if self.takes_indices:
            kwargs["logits_to_keep"] = index[0]
        with torch.no_grad():
            output = self.model(input_ids=ids, position_ids=places, **kwargs)
        if not self.takes_indices:
            output.logits = output.logits[:, index[0]]
        return output


class SeparateThreads(Threads):
    """A cache for each thread, of the kind that the model makes by itself."""

    def open(self, adapters: tuple[str, ...]) -> Thread:
        self.threads.append(Thread(adapters))
        return self.threads[-1]

    def fork(self, thread: Thread, adapters: tuple[str, ...]) -> Thread:
        twin = Thread(adapters, thread)
        twin.cache = None if thread.cache is None else fork(thread.cache)
        self.threads.append(twin)
        return twin

    def evict(self, thread: Thread, spans: Sequence[Span]) -> None:
        if thread.cache is not None and spans:
            evict(thread.cache, spans)
            thread.resident -= sum(end - begin for begin, end in spans)

    def close(self, thread: Thread) -> None:
        self.threads.remove(thread)
        thread.cache = None  # whoever waits for Python's cycle collector holds no memory

    def step(self, feeds: Sequence[Feed]) -> list[Tensor]:
        logits = []
        for thread, tokens in feeds:
            positions = list(range(thread.position, thread.position + len(tokens)))
            self.adapters.choose([(thread.adapters, len(tokens))])
            output = self._call(thread.cache, tokens, positions, [len(tokens) - 1], None)
            thread.cache = output[CACHE_NAME]
            _advance(thread, len(tokens))
            logits.append(output.logits[0, 0].float())
        return logits

    @property
    def nbytes(self) -> int:
        return sum(cache_nbytes(thread.cache) for thread in self.threads if thread.cache is not None)


class PackedThreads(Threads):
    """
    All threads in one row of one cache, told apart by a mask.

    A slot of the cache holds a token of one thread; a fork sees its parent's slots without a copy, and what either
    adds later the other does not see. A forward takes the next tokens of all threads, each at its own position.
    Attention reads the slots of all threads for each token, and masks: right for threads that share most of what they
    see, and where reading the cache once is what costs.

    Raises:
        ValueError: for an attention that takes no mask, and (with the first tokens) for a cache that is not dense.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        name = compat.attention_name(compat.decoder_of(model))
        if name not in MASKED_ATTENTION:
            raise ValueError(
                f"Threads cannot be decoded in the same forward by the attention {name!r}, which takes no mask of "
                f"single pairs: call model.set_attn_implementation('sdpa'), or use SideQuestConfig(synchronous=True)."
            )
        use_packed_attention(model, self.edits)
        self.cache: Cache | None = None
        self.positions = torch.zeros(0, dtype=torch.long, device=self.device)  # of each slot's token, in its thread
        self.numbers = self.positions  # of each slot's token, among all that the cache has seen
        self.seen = 0  # tokens that the cache has seen

    def open(self, adapters: tuple[str, ...]) -> Thread:
        return self._add(Thread(adapters), torch.zeros_like(self.positions, dtype=torch.bool))

    def fork(self, thread: Thread, adapters: tuple[str, ...]) -> Thread:
        return self._add(Thread(adapters, thread), thread.sees.clone())

    def _add(self, thread: Thread, sees: Tensor) -> Thread:
        thread.sees = sees
        self.threads.append(thread)
        return thread

    def evict(self, thread: Thread, spans: Sequence[Span]) -> None:
        for begin, end in spans:
            thread.sees = thread.sees & ~((self.positions >= begin) & (self.positions < end))
        thread.resident = int(thread.sees.sum())
        self._free()

    def close(self, thread: Thread) -> None:
        self.threads.remove(thread)
        self._free()
        if not self.threads:
            self.cache = None

    def _free(self) -> None:
        """Drops the slots that no thread sees."""
        seen = torch.zeros_like(self.positions, dtype=torch.bool)
        for thread in self.threads:
            seen |= thread.sees
        if self.cache is None or seen.all():
            return
        kept = torch.zeros(1, self.seen, dtype=torch.bool, device=self.device)
        kept[0, self.numbers[seen]] = True
        keep_tokens(self.cache, kept)
        self.positions, self.numbers = self.positions[seen], self.numbers[seen]
        for thread in self.threads:
            thread.sees = thread.sees[seen]

    def step(self, feeds: Sequence[Feed]) -> list[Tensor]:
        positions = [thread.position + place for thread, added in feeds for place in range(len(added))]
        ends = list(accumulate(len(added) for _, added in feeds))
        logits = self.forward(feeds, positions, ends, self._sees(feeds, ends))
        slots, count = len(self.positions), ends[-1]
        self.positions = torch.cat([self.positions, torch.tensor(positions, dtype=torch.long, device=self.device)])
        self.numbers = torch.cat([self.numbers, torch.arange(self.seen, self.seen + count, device=self.device)])
        self.seen += count
        for thread in self.threads:
            thread.sees = torch.nn.functional.pad(thread.sees, (0, count))
        for (thread, added), end in zip(feeds, ends, strict=True):
            thread.sees[slots + end - len(added) : slots + end] = True
            _advance(thread, len(added))
        return logits

    def forward(
        self, feeds: Sequence[Feed], positions: list[int], ends: list[int], sees: Tensor | None
    ) -> list[Tensor]:
        """What `step` returns, from what of the slots each token sees; None where a lone thread sees everything."""
        tokens = [token for _, added in feeds for token in added]
        self.adapters.choose([(thread.adapters, len(added)) for thread, added in feeds])
        mask = None if sees is None else as_mask(sees, self.model.get_input_embeddings().weight.dtype)
        output = self._call(self.cache, tokens, positions, [end - 1 for end in ends], mask)
        if self.cache is None:
            self.cache = self._checked(output[CACHE_NAME])
        return list(output.logits[0].float())

    def _sees(self, feeds: Sequence[Feed], ends: list[int]) -> Tensor | None:
        """Bool `[q_len, slots + q_len]`; None where a lone thread sees everything."""
        slots, count = len(self.positions), ends[-1]
        if len(feeds) == 1 and feeds[0][0].resident == slots:
            return None
        sees = torch.zeros(count, slots + count, dtype=torch.bool, device=self.device)
        for (thread, added), end in zip(feeds, ends, strict=True):
            own = slice(end - len(added), end)
            sees[own, :slots] = thread.sees
            sees[own, slots + own.start : slots + end] = torch.ones(
                len(added), len(added), dtype=torch.bool, device=self.device
            ).tril()
        return sees

    def _checked(self, cache: Cache) -> Cache:
        for index, layer in enumerate(cache.layers):
            if not (compat.is_full_attention_layer(layer) or isinstance(layer, DenseLayer)):
                raise ValueError(
                    f"Layer {index} of this model's cache is a {type(layer).__name__}, whose tokens cannot be those "
                    "of several threads: use SideQuestConfig(synchronous=True), which forks the cache."
                )
        return cache

    @property
    def nbytes(self) -> int:
        return 0 if self.cache is None else cache_nbytes(self.cache)


def _advance(thread: Thread, count: int) -> None:
    thread.position += count
    thread.resident += count
    thread.own += count
