"""Files of one JSON value a line, which grow as a run goes on and may be cut off in the middle of a line."""

import json
import os
from pathlib import Path
from typing import Any


def whole_lines(path: Path) -> list[Any]:
    """What the lines hold; nothing without a file. A last line that was torn by the end of its run is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    return [json.loads(line) for line in data[:end].splitlines()]


def add_line(path: Path, value: Any) -> None:
    """Writes one more line."""
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")
