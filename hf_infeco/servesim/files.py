"""Descriptions in YAML, checked against the dataclasses; whatever is wrong is named by file and line."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from .settings import Cluster, Instance

Described = TypeVar("Described")


def read_cluster(path: str | Path) -> Cluster:
    """A cluster's file; its paths to models and profiles are relative to it."""
    path = Path(path)
    cluster = read_description(path, Cluster)
    if not cluster.instances:
        raise ValueError(f"{path}: `instances` is empty: nobody serves")
    return replace(cluster, instances=tuple(placed(each, path.parent) for each in cluster.instances))


def placed(instance: Instance, folder: Path) -> Instance:
    """With paths that start from `folder`."""
    return replace(instance, model=str(folder / instance.model), profile=str(folder / instance.profile))


def read_description(path: Path, kind: type[Described]) -> Described:
    """
    A YAML file as a dataclass.

    Raises:
        ValueError: the first thing that is wrong with it, as file:line: what.
    """
    # 0.2 s that whoever builds a cluster in Python need not wait for.
    import yaml
    from pydantic import TypeAdapter, ValidationError

    try:
        text = path.read_text("utf-8")
        content, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}:{line}: it is no YAML, {error.problem}") from None
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = [part for part in first["loc"] if isinstance(part, int) or not part.startswith("function-")]
        raise ValueError(f"{path}:{_line(node, where)}: {_sentence(first, where)}") from None


def _line(node: Any, where: list[Any]) -> int:
    """Of the innermost place on the way that the file has."""
    line = node.start_mark.line + 1 if node else 1
    for part in where:
        if isinstance(part, int):
            children = {place: (child, child) for place, child in enumerate(getattr(node, "value", ()))}
        else:
            pairs = node.value if node and isinstance(node.value, list) else ()
            children = {pair[0].value: pair for pair in pairs if isinstance(pair, tuple)}
        if part not in children:
            break
        key, node = children[part]
        line = key.start_mark.line + 1
    return line


def _sentence(error: Any, where: list[Any]) -> str:
    name = ".".join(map(str, where)) or "the file"
    given = repr(error["input"])
    given = given if len(given) < 60 else given[:57] + "..."
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown field {name}"
    if error["type"].startswith("missing"):
        return f"the field {name} is missing"
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]} (it is {given})"
