"""
Questions over a world, the expert who answers them, and who checks an answer.

A question holds one chain or several ("Ann Fox > employer > founder"). The answer says, for each, what the last page
says and which result showed it: a page that ends an early chain has to stay readable until all are done.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .world import RELATIONS, World

SYSTEM = (
    "Follow each chain of the question with the tools search(query), open(page, cursor) and find(page, text, cursor). "
    "One call in each turn. At the end say what the last page of each chain says, and cite its result."
)
EVALUATION_SEED = 1_000_000  # worlds from here on are never trained on
LONG = [(4, 1), (6, 1), (2, 2), (3, 2)]  # hops and parts
CITED = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class Chain:
    """From a page's title along relations; `titles` holds the pages on the way, start and end included."""

    relations: list[str]
    titles: list[str]

    def left(self, at: int) -> str:
        """What of the chain is left at its page number `at`; how much that is decides what comes next."""
        return f"{len(self.relations) - at} left: " + " > ".join([self.titles[at], *self.relations[at:]])

    @property
    def last(self) -> str:
        """The end as a page tells it."""
        return f"{self.relations[-1]} of {self.titles[-2]} is {self.titles[-1]}"


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        world: whose pages are asked about.
        chains: one or more, from different starts.
    """

    world: World
    chains: list[Chain]

    @property
    def messages(self) -> list[dict[str, str]]:
        """System and user message."""
        chains = "; ".join(f"{self.part(number)} {chain.left(0)}" for number, chain in enumerate(self.chains))
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Follow {chains}."}]

    @property
    def tools(self) -> list[Callable[..., str]]:
        """What the world is read with."""
        return self.world.tools()

    @cached_property
    def solution(self) -> list[dict[str, str]]:
        """The expert's messages."""
        return solve(self)

    @property
    def kind(self) -> str:
        """What accuracy is told by."""
        return f"{len(self.chains)} x {len(self.chains[0].relations)} hops"

    @property
    def answer(self) -> list[str]:
        """What has to be said of each chain."""
        return [f"{self.part(number)} {chain.last}" for number, chain in enumerate(self.chains)]

    def part(self, number: int) -> str:
        """How a chain is called, from 0: `(1/2)`."""
        return f"({number + 1}/{len(self.chains)})"

    def is_right(self, message: str) -> bool:
        """Whether a message is the full answer: every chain's end, in order, each with a citation."""
        said = message.partition("Answer: ")[2].rstrip(". ").split("; ")
        return [CITED.sub("", part).strip() for part in said] == self.answer and all(map(CITED.search, said))


def make_task(seed: int, hops: int, parts: int = 1) -> Task:
    """A question of `parts` chains of `hops` relations; no relation comes twice in a chain, and no page."""
    world, draw = World(seed), random.Random(f"{seed} {hops} {parts}")
    chains: list[Chain] = []
    while len(chains) < parts:
        chain = _chain(world, hops, draw)
        if chain and chain.titles[0] not in [other.titles[0] for other in chains]:
            chains.append(chain)
    return Task(world, chains)


def draw_tasks(count: int, seed: int, held_out: bool) -> list[Task]:
    """So many tasks long enough for a context to need tidying, of the kinds in `LONG`; the same for the same seed."""
    draw, first = random.Random(f"{seed} {held_out}"), EVALUATION_SEED if held_out else 0
    return [make_task(first + draw.randrange(EVALUATION_SEED), *draw.choice(LONG)) for _ in range(count)]


def _chain(world: World, hops: int, draw: random.Random) -> Chain | None:
    titles, relations = [draw.choice(list(world.pages))], []
    for _ in range(hops):
        page = world.pages[titles[-1]]
        fresh = [name for name in RELATIONS[page.kind] if name not in relations and page.relations[name] not in titles]
        if not fresh:
            return None
        relations.append(draw.choice(fresh))
        titles.append(page.relations[relations[-1]])
    return Chain(relations, titles)


def as_call(tool: str, **arguments: Any) -> str:
    """A call as the agent writes it."""
    return json.dumps({"tool": tool, **arguments})


def solve(task: Task) -> list[dict[str, str]]:
    """The expert's messages after system and user, tool results included: the shortest way, always right."""
    messages: list[dict[str, str]] = []
    results = 0

    def call(thought: str, tool: str, **arguments: Any) -> int:
        """Writes the call and its result; returns the result's number."""
        nonlocal results
        output = getattr(task.world, tool)(**arguments)
        messages.append({"role": "assistant", "content": thought + as_call(tool, **arguments)})
        messages.append({"role": "tool", "content": f"[{results}]\n{output}"})
        results += 1
        return results - 1

    told, answers = "", []
    for number, chain in enumerate(task.chains):
        part = task.part(number)
        told += f"{part} {chain.left(0)}.\n"
        for at, relation in enumerate(chain.relations):
            page = task.world.pages[chain.titles[at]]
            cursor = call(told, "search", query=page.title)
            cursor = call("", "open", page=page.address, cursor=cursor)
            if not page.shows(relation):
                cursor = call("", "find", page=page.address, text=relation, cursor=cursor)
            if at + 1 < len(chain.relations):
                told = f"[{cursor}] {page.states(relation)}. {part} {chain.left(at + 1)}.\n"
        # The end is looked up again when the answer is written: until then its page is needed.
        told = f"[{cursor}] ends {part} {relation} of {page.title}. "
        answers.append(f"{task.answer[number]} [{cursor}]")
    messages.append({"role": "assistant", "content": f"{told.strip()}\nAnswer: {'; '.join(answers)}"})
    return messages
