"""The command in which a side thread ends, read strictly: whatever is not exactly one deletes nothing."""

import json
import re
from collections.abc import Collection

KEY = "del_cursors"
ONE_OBJECT = re.compile(r"[^{}]*(\{[^{}]*\})\s*")


class RejectedCommand(ValueError):
    """A side thread's text that is no command; the message says why."""


def parse_command(text: str, open_cursors: Collection[int]) -> list[int]:
    """
    The cursors that a side thread asks to delete: `{"del_cursors": [0, 2]}` behind any text without braces.

    Args:
        text (`str`): what the side thread wrote.
        open_cursors (`Collection[int]`): the cursors that it was shown.

    Raises:
        RejectedCommand: unless the text ends in one JSON object with one key and distinct ids of open cursors.
    """
    found = ONE_OBJECT.fullmatch(text)
    if found is None:
        raise RejectedCommand(f'the text does not end in one object {{"{KEY}": [...]}}, the only braces in it')
    try:
        entries = json.loads(found[1], object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise RejectedCommand(f"{found[1]} is no JSON: {error}") from error
    if [key for key, _ in entries] != [KEY]:
        raise RejectedCommand(f"{found[1]} has other keys than one {KEY!r}")
    ids = entries[0][1]
    if not isinstance(ids, list) or not all(type(cursor) is int for cursor in ids):
        raise RejectedCommand(f"{ids!r} is no list of whole numbers")
    if len(set(ids)) != len(ids):
        raise RejectedCommand(f"{ids} names a cursor twice")
    if unknown := sorted(set(ids) - set(open_cursors)):
        raise RejectedCommand(f"{unknown} are no open cursors; open are {sorted(open_cursors)}")
    return ids
