"""Whether an index is whole: what a damaged file or a wrong hand would break, and decoding would not notice."""

import torch

from ..kernels.static.reference import PAD, Trie
from .build import number_nodes
from .eligible import propagate
from .index import StaticIndex
from .items import ItemIds
from .structure import find_misfits


def find_faults(index: StaticIndex, fingerprint: str) -> list[str]:
    """
    What is wrong with an index, in sentences; none if all is well. Reads all of it and numbers its nodes again.

    Args:
        fingerprint (`str`): the one that was written down when the index was built.
    """
    if faults := list(find_misfits(index.vocab_size, index.trie, index.item_ids, index.eligible)):
        return [f"{fault[0].upper()}{fault[1:]}." for fault in faults]
    trie = index.trie
    sizes = trie.alphabet_start.diff()
    if (trie.sequences < PAD).any() or (trie.sequences >= sizes).any():
        return [f"Some sequence holds a code beyond its level's tokens, {sizes.tolist()}."]
    if index.item_ids is not None and (fault := _fault_of_items(index.item_ids)):
        return [fault]
    if not _ascends(trie.sequences):
        faults.append("The sequences are not sorted, or repeat.")
    again = number_nodes(trie.sequences.numpy(), trie.alphabet.numpy(), trie.alphabet_start.numpy())
    if index.eligible is not None:
        again = propagate(again, index.eligible, None if index.item_ids is None else index.item_ids.begin)
    wrong = [name for name, mine, right in zip(Trie._fields, trie, again, strict=True) if not _equal(mine, right)]
    if wrong:
        faults.append(f"{', '.join(wrong)} do not belong to the sequences.")
    index.__dict__.pop("fingerprint", None)  # the one that was read from the file
    if index.fingerprint != fingerprint:
        faults.append(f"The fingerprint is {index.fingerprint}, and {fingerprint} was written down.")
    return faults


def _fault_of_items(item_ids: ItemIds) -> str:
    """What is wrong with the ids themselves; that they are those of the sequences the fingerprint says."""
    if (item_ids.begin.diff() < 1).any():
        return "Some sequence has no item."
    if not torch.equal(item_ids.row.sort().values, torch.arange(len(item_ids), dtype=torch.int32, device="cpu")):
        return "The order in which the items were built is damaged."
    if item_ids.text is not None and (item_ids.values.diff() < 0).any():
        return "The bounds of the items' ids do not ascend."
    try:
        item_ids.tolist()
    except UnicodeDecodeError as error:
        return f"Some item's id is no text: {error}."
    return ""


def _ascends(sequences: torch.Tensor) -> bool:
    """Whether each row comes after the one before it: at the first column where they differ, it is greater."""
    differ = sequences[1:] != sequences[:-1]
    first = differ.to(torch.int8).argmax(1, keepdim=True)
    return bool((sequences[1:].gather(1, first) > sequences[:-1].gather(1, first)).all())


def _equal(mine: object, right: object) -> bool:
    if isinstance(mine, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(mine, right)
    return mine == right
