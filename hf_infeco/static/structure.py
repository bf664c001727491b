"""Whether the parts of an index fit together. Reads little of them: what bounds every place that decoding reads."""

from collections.abc import Iterator

import torch

from ..kernels.static.reference import Trie
from .items import ItemIds

CODES = (torch.int16, torch.int32)
DTYPES = {"sequences": CODES, "code": CODES, "node_alive": (torch.bool,), "sequence_alive": (torch.bool,)}


def find_misfits(
    vocab_size: int, trie: Trie, item_ids: ItemIds | None, eligible: torch.Tensor | None
) -> Iterator[str]:
    """What does not fit, in sentences without their full stop. The first may be the cause of the others."""
    for name, part in zip(Trie._fields[:-1], trie[:-1], strict=True):
        dtypes = DTYPES.get(name, (torch.int32,))
        if part is None and name in ("node_alive", "sequence_alive"):
            continue
        if part is None or part.dtype not in dtypes or part.dim() != 1 + (name == "sequences"):
            yield f"{name} is missing, or no array as it must be"
            return
    yield from _wrong_sizes(trie)
    yield from _wrong_levels(vocab_size, trie)
    items = len(trie.sequences)
    if item_ids is not None:
        yield from _wrong_items(item_ids, items)
        items = int(item_ids.begin[-1])
    if (eligible is None) != (trie.node_alive is None) or (eligible is not None and eligible.shape != (items,)):
        yield f"eligible does not tell of {items} items"


def _wrong_sizes(trie: Trie) -> Iterator[str]:
    rows, length = trie.sequences.shape
    nodes = len(trie.code)
    right = {"alphabet_start": length + 1, "first_child": nodes + 1, "first_sequence": nodes}
    right |= {"wide_start": len(trie.wide) + 1, "node_alive": nodes, "sequence_alive": rows}
    for name, size in right.items():
        part = getattr(trie, name)
        if part is not None and len(part) != size:
            yield f"{name} has {len(part)} entries, and there must be {size}"
    if not (rows and length and nodes and trie.code.dtype == trie.sequences.dtype):
        yield f"sequences {tuple(trie.sequences.shape)} and code ({nodes},) do not belong together"
    if (trie.node_alive is None) != (trie.sequence_alive is None):
        yield "node_alive and sequence_alive come together"


def _wrong_levels(vocab_size: int, trie: Trie) -> Iterator[str]:
    sizes = trie.alphabet_start.diff()
    if not _spans(trie.alphabet_start, len(trie.alphabet)) or not (sizes > 0).all():
        yield "alphabet_start does not divide the alphabet into levels"
        return
    if (trie.alphabet < 0).any() or (trie.alphabet >= vocab_size).any():
        yield f"some token lies outside [0, {vocab_size})"
    rises = trie.alphabet.diff() > 0
    rises[trie.alphabet_start[1:-1].long() - 1] = True
    if not rises.all():
        yield "the tokens of some level are not in order"
    if len(trie.widths) != len(sizes) or not all(1 <= w <= size for w, size in zip(trie.widths, sizes.tolist())):
        yield f"widths={list(trie.widths)} are not those of {len(sizes)} levels of {sizes.tolist()} tokens"
    if not _spans(trie.wide_start, len(trie.wide_bits)):
        yield "wide_start does not divide wide_bits"
    if not _nodes_follow(trie.first_child, len(trie.code), len(sizes)):
        yield "first_child does not number the nodes level by level"


def _nodes_follow(first_child: torch.Tensor, nodes: int, length: int) -> bool:
    """Whether one level's children begin where the level ends, down to the last."""
    bounds = [0, 1]
    for _ in range(length):
        if len(first_child) != nodes + 1 or not bounds[-2] <= bounds[-1] <= nodes:
            return False
        bounds.append(int(first_child[bounds[-1]]))
    return bounds[-1] == nodes == int(first_child[-1]) and int(first_child[0]) == 1


def _wrong_items(item_ids: ItemIds, sequences: int) -> Iterator[str]:
    missing = [name for name, part in item_ids._asdict().items() if part is None and name != "text"]
    if missing:
        yield f"item_{missing[0]} is missing"
        return
    items = len(item_ids)
    if len(item_ids.begin) != sequences + 1 or not _ends(item_ids.begin, items):
        yield f"item_begin does not divide {items} items among {sequences} sequences"
    if len(item_ids.values) != items + (item_ids.text is not None):
        yield f"item_values has {len(item_ids.values)} entries for {items} items"
    elif item_ids.text is not None and not _ends(item_ids.values, len(item_ids.text)):
        yield "item_values are not the bounds of item_text"


def _ends(bounds: torch.Tensor, total: int) -> bool:
    return len(bounds) > 0 and int(bounds[0]) == 0 and int(bounds[-1]) == total


def _spans(bounds: torch.Tensor, total: int) -> bool:
    return _ends(bounds, total) and bool((bounds.diff() >= 0).all())
