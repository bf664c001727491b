"""
How wide to run: policies that look at what waits and runs and answer with a width. Free of torch; time is an argument.

`R` processes at width `w` are `R / w` groups, each one replica in tensor parallelism over `w` processes. Narrow groups
finish more requests, a wide one finishes a single request sooner and holds longer ones. Source: arXiv 2602.22593,
section 4 (when to switch) and 5 (sequential, soft and hard preemption).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple


class Request(NamedTuple):
    """
    What a policy knows of a request.

    Attributes:
        prompt_tokens, new_tokens (`int`): of the prompt, and at most generated.
        priority (`int`): above 0 asks for the widest width.
        is_prefilling (`bool`): whether it runs and its prompt is not done.
    """

    prompt_tokens: int
    new_tokens: int = 0
    priority: int = 0
    is_prefilling: bool = False

    @property
    def tokens(self) -> int:
        """What it will hold in the KV cache at its end."""
        return self.prompt_tokens + self.new_tokens


class Snapshot(NamedTuple):
    """
    The state of all processes together.

    Attributes:
        time (`float`): seconds, of any clock that does not go back.
        width (`int`): processes that form one group now.
        budgets (`Mapping[int, int]`): tokens of KV cache that one group holds, for each width that can be had.
        waiting, running (`Sequence[Request]`): of all groups.
    """

    time: float
    width: int
    budgets: Mapping[int, int]
    waiting: Sequence[Request] = ()
    running: Sequence[Request] = ()

    @property
    def widest(self) -> int:
        return max(self.budgets)


class Decision(NamedTuple):
    """
    Attributes:
        width (`int`): to run at from now on. A switch that still waits names the width of now.
        target (`int`): what the policy is after.
        admits (`bool`): whether waiting requests may start. Not while a switch waits for the running ones to end.
        reason (`str`): for a log or a status page.
    """

    width: int
    target: int
    admits: bool
    reason: str


class Wish(NamedTuple):
    """A width, why, and whether it cannot wait: a request that fits nowhere else, or one with priority."""

    width: int
    reason: str
    is_urgent: bool = False


def narrowest_fit(request: Request, budgets: Mapping[int, int]) -> int | None:
    """The narrowest width whose groups hold a request to its end; None where it fits in none."""
    return min((width for width, budget in budgets.items() if request.tokens <= budget), default=None)


def least_loaded(loads: Sequence[int], alive: Sequence[bool] | None = None) -> int:
    """
    The group that a request goes to: the one with the fewest tokens, the first of several.

    Raises:
        ValueError: if no group is alive.
    """
    candidates = [index for index in range(len(loads)) if alive is None or alive[index]]
    if not candidates:
        raise ValueError(f"None of {len(loads)} groups is alive. Restart the processes.")
    return min(candidates, key=lambda index: loads[index])


@dataclass
class Policy:
    """
    Base of the policies. All want the same width and differ in when they let the switch happen. An object serves one
    engine: it remembers since when it has wanted what.

    Args:
        crowded (`float`): requests in a group above which narrower groups are wanted.
        calm (`float`): requests in a group up to which a wider one is wanted. The gap between the two keeps a load
            that stays in between from switching back and forth.
        dwell (`float`): seconds that a load must have asked for a width before it counts, and between two switches
            for the load's sake.
        patience (`float`): seconds that a switch waits for prompts that are being prefilled.

    Raises:
        ValueError: if `calm` exceeds `crowded`, or a time is negative.
    """

    name: ClassVar[str] = ""

    crowded: float = 4.0
    calm: float = 1.0
    dwell: float = 1.0
    patience: float = 5.0
    _wanted: int | None = field(default=None, init=False, repr=False)
    _since: float = field(default=0.0, init=False, repr=False)
    _switched: float = field(default=float("-inf"), init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.calm <= self.crowded:
            raise ValueError(f"calm={self.calm} must be above 0 and at most crowded={self.crowded}.")
        if self.dwell < 0 or self.patience < 0:
            raise ValueError(f"dwell={self.dwell} and patience={self.patience} are seconds and must not be negative.")

    def wish(self, state: Snapshot) -> Wish:
        """The width wanted in this state, whatever it would cost to go there."""
        requests = [*state.waiting, *state.running]
        needed = [width for each in requests if (width := narrowest_fit(each, state.budgets)) is not None]
        least = max(needed, default=min(state.budgets))
        if any(each.priority > 0 for each in requests):
            return Wish(state.widest, "a request with priority", is_urgent=True)
        if least > state.width:
            return Wish(least, f"a request fits at width {least} only", is_urgent=True)
        width = self._by_load(state, len(requests))
        if width < least:
            return Wish(least, f"a request fits at width {least} only")
        return Wish(width, f"{len(requests)} requests")

    def _by_load(self, state: Snapshot, num_requests: int) -> int:
        if num_requests == 0:
            return state.width
        in_group = {width: num_requests * width / state.widest for width in state.budgets}
        if in_group[state.width] > self.crowded:
            return max((width for width in in_group if in_group[width] <= self.crowded), default=min(in_group))
        calm = [width for width in in_group if in_group[width] <= self.calm and width > state.width]
        return max(calm, default=state.width)

    def decide(self, state: Snapshot) -> Decision:
        """
        The width to run at from `state.time` on.

        Raises:
            ValueError: if the width of now has no budget.
        """
        if state.width not in state.budgets:
            raise ValueError(f"Width {state.width} has no budget: budgets are of {sorted(state.budgets)}.")
        wish = self.wish(state)
        if wish.width != self._wanted:
            self._wanted, self._since = wish.width, state.time
        if wish.width == state.width:
            return Decision(state.width, state.width, True, wish.reason)
        if not self._is_due(state, wish):
            return Decision(state.width, wish.width, True, f"{wish.reason}: not for long enough")
        if self._lets_go(state, wish):
            self._switched = state.time
            return Decision(wish.width, wish.width, True, wish.reason)
        return Decision(state.width, wish.width, False, f"{wish.reason}: waits for what runs")

    def _is_due(self, state: Snapshot, wish: Wish) -> bool:
        settled = state.time - max(self._since, self._switched) >= self.dwell
        return wish.is_urgent or settled

    def _lets_go(self, state: Snapshot, wish: Wish) -> bool:
        """Whether what runs allows the switch."""
        raise NotImplementedError

    def _prompts_are_done(self, state: Snapshot) -> bool:
        waited = state.time - self._since >= self.dwell + self.patience
        return waited or not any(request.is_prefilling for request in state.running)


class Sequential(Policy):
    """Switches when nothing runs any more. Nothing is moved; the longest request decides how long that takes."""

    name = "sequential"

    def _lets_go(self, state: Snapshot, wish: Wish) -> bool:
        return not state.running


class Soft(Policy):
    """Switches when no prompt is half done, for at most `patience` seconds; requests that decode move along."""

    name = "soft"

    def _lets_go(self, state: Snapshot, wish: Wish) -> bool:
        return self._prompts_are_done(state)


class Hard(Policy):
    """Switches at once; whatever runs moves along."""

    name = "hard"

    def _lets_go(self, state: Snapshot, wish: Wish) -> bool:
        return True


class Auto(Policy):
    """Hard for a request that cannot wait, soft for the sake of the load."""

    name = "auto"

    def _lets_go(self, state: Snapshot, wish: Wish) -> bool:
        return wish.is_urgent or self._prompts_are_done(state)


POLICIES = {policy.name: policy for policy in (Sequential, Soft, Hard, Auto)}


def make_policy(name: str, **settings: float) -> Policy:
    """
    The policy of a name, with its settings.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in POLICIES:
        raise ValueError(f"policy={name!r} is unknown: use one of {list(POLICIES)}.")
    return POLICIES[name](**settings)
