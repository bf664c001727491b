"""
STATIC on a GPU: `reference.constrain` in one launch, in which a program walks, masks and scatters for one row.

Not yet run on a GPU: tested in Triton's interpreter and compiled ahead of time (`kernels/aot.py`).

What a row waits for is memory, one read behind the other, so a program reads few times and much at once: a child is
found by comparing all the places where it can be, which the number of those before and behind it narrows down. Rows
have programs of their own and wait side by side. No step waits for the device, and nothing depends on how many
sequences there are, nor on the widest node.
"""

from functools import partial

import torch
import triton
import triton.language as tl

from . import reference
from .reference import DEAD, DONE, FREE, PAD, Trie, blocked_score

BLOCK = 1024  # places compared, and scores filled, at a time
_DEAD, _DONE, _FREE, _PAD = (tl.constexpr(value) for value in (DEAD, DONE, FREE, PAD))

# ---------------------------------------------------------------- on the device


@triton.jit
def _find(values, low, high, wanted, least, most, BLOCK: tl.constexpr):
    """
    Position of `wanted` in `values[low:high]`, -1 where it is not. The values are distinct, ascending, and none lies
    outside `[least, most]`.
    """
    found = tl.full([], -1, tl.int32)
    first, behind = tl.maximum(low, high - 1 - (most - wanted)), tl.minimum(high, low + (wanted - least) + 1)
    for begin in range(first, behind, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        inside = place < behind
        is_it = inside & (tl.load(values + place, inside, 0).to(tl.int32) == wanted)
        found = tl.maximum(found, tl.max(tl.where(is_it, place, -1), 0))
    return found


@triton.jit
def _read_node(
    first_child, first_sequence, sequences, sequence_alive, node, depth, LENGTH: tl.constexpr
):  # fmt: skip
    """Of a node: its children's bounds, the code that its first sequence goes on with, whether that one ends here."""
    at = tl.maximum(node, 0)
    begin, end = tl.load(first_child + at), tl.load(first_child + at + 1)
    sequence = tl.load(first_sequence + at).to(tl.int64)
    following = tl.load(sequences + sequence * LENGTH + tl.minimum(depth, LENGTH - 1)).to(tl.int32)
    following = tl.where(depth < LENGTH, following, _PAD)
    is_whole = (node >= 0) & (following == _PAD)
    if sequence_alive is not None:
        is_whole &= tl.load(sequence_alive + sequence) != 0
    return begin, end, following, is_whole


@triton.jit
def _walk(
    alphabet, alphabet_start, sequences, first_child, code, first_sequence, node_alive, sequence_alive,
    tokens, start, total, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """State behind the tokens of one row that lie from `start` on."""
    node = tl.where(start < 0, _FREE, 0).to(tl.int32)
    depth = node * 0
    for offset in range(0, LENGTH + 1):  # one token behind the longest sequence makes a row DONE
        if (node >= 0) & (start + offset < total):
            begin, end, following, is_whole = _read_node(
                first_child, first_sequence, sequences, sequence_alive, node, depth, LENGTH
            )
            token = tl.load(tokens + start + offset)
            token = tl.where((token >= 0) & (token < 2147483648), token, -1).to(tl.int32)
            level = alphabet_start + tl.minimum(depth, LENGTH - 1)
            low, high = tl.load(level), tl.load(level + 1)
            least, most = tl.load(alphabet + low), tl.load(alphabet + high - 1)
            wanted = _find(alphabet, low, high, token, least, most, BLOCK) - low
            after = tl.where((begin == end) & (following == wanted), node, -1)
            if (wanted >= 0) & (begin < end):
                after = _find(code, begin, end, wanted, 0, high - low - 1, BLOCK)
            if node_alive is not None:
                after = tl.where(tl.load(node_alive + tl.maximum(after, 0)) != 0, after, -1)
            depth += (after >= 0).to(tl.int32)
            node = tl.where(after >= 0, after, tl.where(is_whole, _DONE, _DEAD))
    return node, depth


@triton.jit
def _legal_tokens(
    alphabet, code, node_alive, low, begin, following, first, count, is_tail, BLOCK: tl.constexpr
):  # fmt: skip
    """Tokens `first` and on of the `count` that children, or a tail, go on with; and which of them are legal."""
    place = first + tl.arange(0, BLOCK)
    legal = place < count
    codes = tl.load(code + begin + place, legal & (not is_tail), 0).to(tl.int32)
    if node_alive is not None:
        legal &= is_tail | (tl.load(node_alive + begin + place, legal & (not is_tail), 0) != 0)
    codes = tl.where(is_tail, following, codes)
    return tl.load(alphabet + low + codes, legal, 0), legal


@triton.jit(do_not_specialize=["total"])  # it grows with every token
def _constrain_row(
    alphabet, alphabet_start, sequences, first_child, code, first_sequence, node_alive, sequence_alive,
    tokens, start, scores, end_tokens, out, states, blocked, total, vocab_size, num_ends, lowest,
    LENGTH: tl.constexpr, FREE_AFTER: tl.constexpr, BLOCK: tl.constexpr, BLOCK_ENDS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scores += row * vocab_size
    out += row * vocab_size
    node, depth = _walk(
        alphabet, alphabet_start, sequences, first_child, code, first_sequence, node_alive, sequence_alive,
        tokens + row * total, tl.load(start + row), total, LENGTH, BLOCK,
    )  # fmt: skip
    begin, end, following, is_whole = _read_node(
        first_child, first_sequence, sequences, sequence_alive, node, depth, LENGTH
    )
    low = tl.load(alphabet_start + tl.minimum(depth, LENGTH - 1))
    is_tail = begin == end
    count = tl.where(is_tail, (following != _PAD).to(tl.int32), end - begin)
    count = tl.where(node >= 0, count, 0)
    end_place = tl.arange(0, BLOCK_ENDS)
    ends = (end_place < num_ends) & (is_whole | (node == _DEAD) | (node == _DONE))
    end_token = tl.load(end_tokens + end_place, ends, 0)

    num_legal = tl.sum(ends.to(tl.int32), 0)
    best = tl.max(tl.load(scores + end_token, ends, float("-inf")).to(tl.float32), 0)
    for first in range(0, count, BLOCK):
        token, legal = _legal_tokens(alphabet, code, node_alive, low, begin, following, first, count, is_tail, BLOCK)
        num_legal += tl.sum(legal.to(tl.int32), 0)
        best = tl.maximum(best, tl.max(tl.load(scores + token, legal, float("-inf")).to(tl.float32), 0))
    is_free = (node == _FREE) | (num_legal == 0)
    if FREE_AFTER:
        is_free |= (node == _DONE) | (is_whole & (num_ends == 0))
    is_blocked = (not is_free) & (best == float("-inf"))

    for first in range(0, vocab_size, BLOCK):
        place = first + tl.arange(0, BLOCK)
        value = tl.load(scores + place, is_free & (place < vocab_size), float("-inf"))
        tl.store(out + place, value, place < vocab_size)
    if not is_free:
        tl.debug_barrier()  # another thread of the program may have filled what this one scatters to
        end_score = tl.load(scores + end_token, ends, 0.0).to(tl.float32)
        tl.store(out + end_token, tl.where(is_blocked, lowest, end_score).to(out.dtype.element_ty), ends)
        for first in range(0, count, BLOCK):
            token, legal = _legal_tokens(
                alphabet, code, node_alive, low, begin, following, first, count, is_tail, BLOCK
            )
            value = tl.load(scores + token, legal, 0.0).to(tl.float32)
            tl.store(out + token, tl.where(is_blocked, lowest, value).to(out.dtype.element_ty), legal)
    tl.store(states + row, node.to(tl.int64))
    tl.store(blocked + row, is_blocked)


# ---------------------------------------------------------------- launches


def constrain(
    trie: Trie,
    tokens: torch.Tensor,
    start: torch.Tensor,
    scores: torch.Tensor,
    end_tokens: torch.Tensor,
    free_after: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`reference.constrain` for scores in float32, bfloat16 and float16, which are not overwritten."""
    if scores.dtype == torch.float64:
        return reference.constrain(trie, tokens, start, scores, end_tokens, free_after)
    parts = (trie.alphabet, trie.alphabet_start, trie.sequences, trie.first_child, trie.code, trie.first_sequence)
    alive = (trie.node_alive, trie.sequence_alive)
    return _operation(*parts, *alive, tokens, start, scores, end_tokens, free_after)


def _constrain(
    alphabet: torch.Tensor,
    alphabet_start: torch.Tensor,
    sequences: torch.Tensor,
    first_child: torch.Tensor,
    code: torch.Tensor,
    first_sequence: torch.Tensor,
    node_alive: torch.Tensor | None,
    sequence_alive: torch.Tensor | None,
    tokens: torch.Tensor,
    start: torch.Tensor,
    scores: torch.Tensor,
    end_tokens: torch.Tensor,
    free_after: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scores, states = scores.contiguous(), torch.empty_like(start)
    out, blocked = torch.empty_like(scores), torch.empty_like(start, dtype=torch.bool)
    alive = [None if flags is None else flags.view(torch.uint8) for flags in (node_alive, sequence_alive)]
    rows, vocab_size = scores.shape
    _constrain_row[(rows,)](
        alphabet, alphabet_start, sequences, first_child, code, first_sequence, *alive,
        tokens.contiguous(), start.contiguous(), scores, end_tokens, out, states, blocked.view(torch.uint8),
        tokens.shape[1], vocab_size, len(end_tokens), blocked_score(scores.dtype),
        LENGTH=sequences.shape[1], FREE_AFTER=free_after, BLOCK=BLOCK,
        BLOCK_ENDS=triton.next_power_of_2(max(len(end_tokens), 1)), num_warps=8,
    )  # fmt: skip
    return out, states, blocked


# One operation for torch.compile, which would otherwise look into the launch.
_operation = torch.library.custom_op("hf_infeco::static_constrain", _constrain, mutates_args=())


@_operation.register_fake
def _(
    alphabet, alphabet_start, sequences, first_child, code, first_sequence, node_alive, sequence_alive,
    tokens, start, scores, end_tokens, free_after,
):  # fmt: skip
    contiguous = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    return contiguous, torch.empty_like(start), torch.empty_like(start, dtype=torch.bool)


def example_calls() -> None:
    """Calls on tensors without data that launch the kernel in every configuration that there is."""
    empty = partial(torch.empty, device="meta")
    for codes, length, dtype, num_ends, is_subset, free_after in (
        (torch.int16, 8, torch.float32, 0, False, False),
        (torch.int16, 4, torch.float32, 1, True, False),
        (torch.int32, 4, torch.bfloat16, 3, True, True),
        (torch.int32, 2, torch.float16, 1, False, True),
    ):
        nodes, items, rows = 5000, 4000, 140
        alphabet, alphabet_start = (empty(size, dtype=torch.int32) for size in (length * 2048, length + 1))
        first_child, first_sequence = (empty(size, dtype=torch.int32) for size in (nodes + 1, nodes))
        node_alive, sequence_alive = (empty(size, dtype=torch.bool) if is_subset else None for size in (nodes, items))
        tokens, start, ends = (empty(*size, dtype=torch.int64) for size in ((rows, 70), (rows,), (num_ends,)))
        _constrain(
            alphabet, alphabet_start, empty(items, length, dtype=codes), first_child, empty(nodes, dtype=codes),
            first_sequence, node_alive, sequence_alive, tokens, start, empty(rows, 2048, dtype=dtype), ends,
            free_after,
        )  # fmt: skip
