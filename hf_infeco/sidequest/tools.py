"""The agent's side of the conversation: how a call is written, how a result is told, and running a tool."""

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.utils import get_json_schema

CALL = '{"tool"'
REFERENCE = re.compile(r'\[(\d+)\]|"cursor"\s*:\s*(\d+)')

Message = dict[str, Any] | tuple[str, str, str]


@dataclass(frozen=True)
class Call:
    """
    A tool call in an assistant's text.

    Args:
        begin (`int`): index of its first character in the text; what is in front of it is thought.
        name (`str`, *optional*): of the tool; None if it cannot be read.
        arguments (`dict`): of the tool.
        error (`str`, *optional*): what is wrong with the call, told to the model as the result.
    """

    begin: int
    name: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


class ToolFormat:
    """
    How an agent writes calls and is told results. This one serves any chat template with a role "tool"; subclass it
    for a model with a format of its own.

    Attributes:
        tells_schemas (`bool`): whether the chat template is given the tools' JSON schemas. Here the system message has
            to tell the tools.
    """

    tells_schemas = False

    def parse_call(self, text: str) -> Call | None:
        """The call at the end of an assistant's text: `{"tool": "name", ...arguments}`; None for a final answer."""
        begin = text.rfind(CALL)
        if begin < 0:
            return None
        try:
            arguments = json.loads(text[begin:])
        except json.JSONDecodeError as error:
            return Call(begin, error=f"the call is no JSON object at the end of the text: {error}")
        name = arguments.pop("tool")
        return Call(begin, name if isinstance(name, str) else str(name), arguments)

    def render_result(self, call: Call, cursor: int, text: str) -> Message:
        """
        The message that tells a result. Three texts in its place are put behind the assistant's as they are, without
        the chat template: what comes before the content, the content, and what ends the message.
        """
        return {"role": "tool", "content": f"[{cursor}]\n{text}"}

    def references(self, text: str) -> set[int]:
        """The cursors that an assistant's text uses: `[3]` cites one, and so does an argument `"cursor": 3`."""
        return {int(cited or argument) for cited, argument in REFERENCE.findall(text)}


class Toolbox:
    """
    Plain Python functions as tools.

    Args:
        tools (`Sequence[Callable]`): functions with type hints and docstrings, as `get_json_schema` reads them.
    """

    def __init__(self, tools: Sequence[Callable]):
        self.schemas = [get_json_schema(tool) for tool in tools]
        names = [schema["function"]["name"] for schema in self.schemas]
        if len(set(names)) != len(names):
            raise ValueError(f"Two of the tools {names} have one name: rename one.")
        self.tools = dict(zip(names, tools, strict=True))

    def run(self, call: Call) -> tuple[str, bool]:
        """The result's text, and whether the tool gave it; else it tells the model what was wrong."""
        if call.error is not None:
            return f"Error: {call.error}", False
        tool = self.tools.get(call.name or "")
        if tool is None:
            return f"Error: there is no tool {call.name!r}; there are {sorted(self.tools)}.", False
        try:
            inspect.signature(tool).bind(**call.arguments)
        except TypeError as error:
            return f"Error: {call.name}: {error}.", False
        try:
            result = tool(**call.arguments)
        except Exception as error:  # whatever a tool raises is the model's to deal with
            return f"Error: {call.name} raised {type(error).__name__}: {error}", False
        return result if isinstance(result, str) else json.dumps(result), True
