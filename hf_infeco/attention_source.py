"""
What an attention module's own code does around its call of the attention function, read off its source.

transformers tells nobody whether a model hands its attention more than queries, keys, values and a mask, nor whether
it rearranges what the cache returned. Both decide what a patch may promise, and both stand in the module's code.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn


class AttentionCode(NamedTuple):
    """
    What the class of an attention module does.

    Attributes:
        arguments (`frozenset[str]`): names of what it hands the attention function by keyword.
        treats_sdpa_apart (`bool`): whether it asks if the attention implementation is "sdpa". What it does then, such
            as building a mask of selected blocks, it would leave out under any name that it does not know.
        alters_cache (`bool`): whether it attends with anything but what the cache's `update` returned.
        alters_mask (`bool`): whether it attends with a mask of its own in place of the one it was given.
    """

    arguments: frozenset[str] = frozenset()
    treats_sdpa_apart: bool = False
    alters_cache: bool = False
    alters_mask: bool = False


def attention_code(module: nn.Module) -> AttentionCode:
    """Reads the class of an attention module, or the base that its call comes from; no source tells nothing."""
    kind: Any = type(module)
    return _read(kind)


@functools.cache
def _read(kind: type[nn.Module]) -> AttentionCode:
    for base in kind.__mro__:
        if base.__module__.startswith("torch."):
            break
        methods = list(_methods(base))
        if calls := [(method, call) for method in methods for call in _attention_calls(method)]:
            return AttentionCode(
                frozenset(keyword.arg for _, call in calls for keyword in call.keywords if keyword.arg is not None),
                any(_asks_for_sdpa(node) for method in methods for node in ast.walk(method)),
                any(_alters_cache(function, call) for function, call in calls),
                any(_alters_mask(function, call) for function, call in calls),
            )
    return AttentionCode()


def _methods(kind: type) -> Iterator[ast.FunctionDef]:
    """The methods that a class defines itself. One by one: Python reads a whole file to find the source of a class."""
    for function in vars(kind).values():
        if inspect.isfunction(function):
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
            except (OSError, SyntaxError):  # typed into an interpreter, or made without source
                continue
            yield from (node for node in tree.body if isinstance(node, ast.FunctionDef))


def _attention_calls(function: ast.FunctionDef) -> Iterator[ast.Call]:
    """Calls of what `ALL_ATTENTION_FUNCTIONS.get_interface(...)` gave."""
    assigned = [
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_method_call(node.value, "get_interface")
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    ]
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in assigned:
            yield node


def _is_method_call(node: ast.AST | None, method: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method


def _asks_for_sdpa(node: ast.AST) -> bool:
    """`config._attn_implementation == "sdpa"`, or `in ("eager", "sdpa")`."""
    if not isinstance(node, ast.Compare):
        return False
    parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
    reads = any(isinstance(part, ast.Attribute) and part.attr == "_attn_implementation" for part in parts)
    return reads and any(isinstance(part, ast.Constant) and part.value == "sdpa" for part in parts)


def _alters_cache(function: ast.FunctionDef, call: ast.Call) -> bool:
    """Whether keys and values are not, at the call, the two names that `update` was assigned to."""
    updates = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and _is_method_call(node.value, "update") and node.lineno < call.lineno
    ]
    if not updates:
        return False
    returned = {name.id for update in updates for name in ast.walk(update.targets[0]) if isinstance(name, ast.Name)}
    passed = {argument.id for argument in call.args[2:4] if isinstance(argument, ast.Name)}
    last = max(update.lineno for update in updates)
    return len(passed) != 2 or not passed <= returned or bool(_assignments(function, passed, call.lineno, last))


def _alters_mask(function: ast.FunctionDef, call: ast.Call) -> bool:
    """Whether the mask at the call is neither None nor an argument of the function, as it was given."""
    by_name = [keyword.value for keyword in call.keywords if keyword.arg == "attention_mask"]
    mask = next(iter([*call.args[4:5], *by_name]), None)
    given = {argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]}
    if not isinstance(mask, ast.Name) or mask.id not in given:
        return mask is not None and not isinstance(mask, ast.Constant)
    made = [node for node in _assignments(function, {mask.id}, call.lineno) if not isinstance(node.value, ast.Name)]
    return bool(made)


def _assignments(function: ast.FunctionDef, names: set[str], before: int, after: int = 0) -> list[ast.Assign]:
    """Assignments to any of `names` between two lines."""
    return [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and after < node.lineno < before
        and names & {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    ]
