"""What the recipe asks of an agent: tasks, and how its calls and references are written."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol

from .config import RecipeConfig


class AgentTask(Protocol):
    """
    A question that an agent answers with tools.

    Attributes:
        messages (`list[dict]`): up to the user's question.
        tools (`Sequence[Callable]`): as `SideQuestSession` takes them.
        solution (`list[dict]`, *optional*): messages that answer it, where somebody knows them. The recipe asks the
            model, in one forward, whether it would write them, and takes no longer way.
        kind (`str`): evaluation tells accuracy by it.
    """

    messages: list[dict[str, Any]]
    tools: Sequence[Callable[..., Any]]
    solution: list[dict[str, Any]] | None
    kind: str

    def is_right(self, text: str) -> bool:
        """Whether a final answer is right."""
        ...


def draw_tasks(config: RecipeConfig, count: int, seed: int, held_out: bool) -> list[AgentTask]:
    """`count` tasks by the config's function."""
    return named(config.tasks, "tasks")(count, seed, held_out)


def named(path: str, setting: str) -> Any:
    """
    The object that `module:name` names.

    Raises:
        ValueError: there is no such module, or nothing of that name in it.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"RecipeConfig.{setting}={path!r} cannot be imported: {error}") from error
