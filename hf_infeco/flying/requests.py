"""What a request carries beyond transformers' own state, the order in which requests start, and where answers go."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestState
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

SCHEDULER_NAME = "infeco_priority"


@dataclass
class FlyingState(RequestState):
    """
    A request with a priority.

    Attributes:
        priority (`int`): higher ones start first.
    """

    priority: int = 0

    def create_equivalent_initial_request(self) -> "FlyingState":
        """The same request with its answer so far as part of its prompt, to be computed again."""
        state = copy.copy(self)  # transformers makes one of its own class, which knows no priority
        state.__dict__.update(vars(super().create_equivalent_initial_request()))
        return state

    @property
    def most_tokens(self) -> int:
        """What it holds at its end."""
        return len(self.initial_tokens) + (self.max_new_tokens or 0)


class PriorityScheduler(FIFOScheduler):
    """transformers' first come, first served, among requests of the same priority."""

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        def rank(request_id: str) -> int:
            return -getattr(self.waiting_requests[request_id], "priority", 0)

        order = sorted(self.waiting_requests_order, key=rank)  # stable
        self.waiting_requests_order.clear()
        self.waiting_requests_order.extend(order)
        return super().schedule_batch(token_budget, cache_budget)


def register_scheduler() -> str:
    """Makes the scheduler known to transformers; returns its name."""
    SCHEDULER_MAPPING[SCHEDULER_NAME] = PriorityScheduler
    return SCHEDULER_NAME


class FlyingRouter(OutputRouter):
    """
    Answers of the process that drives a group go to the front, those of the others nowhere: merged processes compute
    the same ones.

    Args:
        drives: whether this process drives its group now.
        send: takes a list of answers to the front; the front's own one delivers them.
    """

    def __init__(self, drives: Callable[[], bool], send: Callable[[list[GenerationOutput]], None]):
        super().__init__()
        self._drives, self._send = drives, send

    def deliver(self, output: GenerationOutput) -> None:
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        if outputs and self._drives():
            self._send(outputs)

    def deliver_here(self, outputs: list[GenerationOutput]) -> None:
        """To this process's handlers or its queue."""
        for output in outputs:
            super().deliver(output)
