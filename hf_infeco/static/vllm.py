"""
`VLLMProcessor`: an index in vLLM's engine, through the logits processors of its V1 model runner.

Written after vLLM's documentation (vllm/v1/sample/logits_processor/interface.py) and tested against that interface,
not yet run in vLLM. What it does is what any engine can do that knows each request's tokens: hand them to the kernel.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch

from ..kernels.dispatch import choose
from .index import StaticIndex

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor
except ModuleNotFoundError:  # vLLM wants a subclass of its own; without it there is nothing to run this in
    LogitsProcessor = object

ARGUMENT = "static_index"  # the entry of a request's `extra_args` that names an index


class Request(NamedTuple):
    """
    A request that an index constrains.

    Attributes:
        name (`str`): of the index.
        ends (`tuple[int, ...]`): tokens that may follow a whole sequence: those at which the request stops.
        output (`list[int]`): the tokens generated so far; vLLM appends to it.
    """

    name: str
    ends: tuple[int, ...]
    output: list[int]


class VLLMProcessor(LogitsProcessor):
    """
    Keeps requests that ask for it inside an index. Name the indexes in a subclass, which the engine loads:

        class Catalogue(VLLMProcessor):
            indexes = {"shop": "path/to/index"}

        llm = LLM(model, logits_processors=[Catalogue])
        llm.generate(prompts, SamplingParams(extra_args={"static_index": "shop"}))

    Attributes:
        indexes: paths for `StaticIndex.from_pretrained`, or indexes, by name. Requests choose by name alone, so that
            none of them can have the server read a file.
    """

    indexes: ClassVar[Mapping[str, str | StaticIndex]] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        name = (sampling_params.extra_args or {}).get(ARGUMENT)
        if name is not None and name not in cls.indexes:
            raise ValueError(f"{ARGUMENT}={name!r} is none of the indexes of this server: {sorted(cls.indexes)}.")

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = torch.device(device)
        self.loaded = {
            name: (index if isinstance(index, StaticIndex) else StaticIndex.from_pretrained(index)).to(self.device)
            for name, index in self.indexes.items()
        }
        self.requests: dict[int, Request] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows the requests from slot to slot of the batch: those removed, added, moved, in this order."""
        if batch_update is None:
            return
        for slot in batch_update.removed:
            self.requests.pop(slot, None)
        for slot, sampling_params, _, output in batch_update.added:
            self.requests.pop(slot, None)
            if (name := (sampling_params.extra_args or {}).get(ARGUMENT)) is not None:
                self.requests[slot] = Request(name, tuple(sorted(sampling_params.all_stop_token_ids)), output)
        for source, target, direction in batch_update.moved:
            moving, staying = self.requests.pop(source, None), self.requests.pop(target, None)
            if moving is not None:
                self.requests[target] = moving
            if staying is not None and direction.name == "SWAP":
                self.requests[source] = staying

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits `[requests, V]`, in place, -inf where a request's index has no such token."""
        for kind in {(request.name, request.ends) for request in self.requests.values()}:
            slots = [slot for slot, request in self.requests.items() if (request.name, request.ends) == kind]
            self._constrain(self.loaded[kind[0]], kind[1], slots, logits)
        return logits

    def _constrain(self, index: StaticIndex, ends: tuple[int, ...], slots: list[int], logits: torch.Tensor) -> None:
        if logits.shape[1] != index.vocab_size:
            raise ValueError(
                f"The model scores {logits.shape[1]} tokens, the index was built for vocab_size={index.vocab_size}; "
                f"build it with vocab_size={logits.shape[1]} and this model's tokens."
            )
        longest = index.length + 1  # one token behind the longest sequence says that a row is done
        outputs = [self.requests[slot].output[:longest] for slot in slots]
        width = max(map(len, outputs))
        rows = [[0] * (width - len(output)) + output for output in outputs]
        tokens = torch.tensor(rows, dtype=torch.int64, device=self.device).view(len(slots), width)
        start = torch.tensor([width - len(output) for output in outputs], dtype=torch.int64, device=self.device)
        known = [token for token in ends if 0 <= token < index.vocab_size]  # a request may stop at any number
        end_tokens = torch.tensor(known, dtype=torch.int64, device=self.device)
        places = torch.tensor(slots, dtype=torch.int64, device=self.device)
        kernels = choose("static_constrain", self.device).module
        logits[places] = kernels.constrain(index.trie, tokens, start, logits[places], end_tokens, False)[0]
