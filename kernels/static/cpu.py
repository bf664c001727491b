"""
STATIC on the CPU: `reference.constrain` in place, compiled.

What a step costs is memory: the places of the trie that rows read lie far apart, and a row's scores may be wide. So
the walk goes level by level through all rows, in loops that first only read, which lets the processor wait for many
rows' memory at once. Only children that are there are searched, within bounds that a full node narrows to a few
places; where much of a level is legal, a bit is read for each token. And a row's scores are filled once, the rows
divided among threads where they are wide.

An index may be mapped from a file that was damaged. Every place that is read out of one is therefore held within the
array that it is a place of: such a file decodes to wrong tokens, which `hf-infeco index check` finds, and never
reaches beyond its arrays.
"""

from typing import NamedTuple

import numpy as np
import torch

from ..jit import jit, on_threads, take_next
from . import reference
from .reference import DEAD, DONE, FREE, NO_CODE, PAD, Trie, blocked_score

ALL = np.zeros(0, dtype=np.bool_)  # stands for "all are alive": compiled code wants one type
LARGE = 2**21  # scores from which on threads pay for being woken


class Arrays(NamedTuple):
    """A `Trie` as compiled code takes it."""

    alphabet: np.ndarray
    alphabet_start: np.ndarray
    sequences: np.ndarray
    first_child: np.ndarray
    code: np.ndarray
    first_sequence: np.ndarray
    wide: np.ndarray
    wide_start: np.ndarray
    wide_bits: np.ndarray
    node_alive: np.ndarray
    sequence_alive: np.ndarray


class Places(NamedTuple):
    """Where each row is, and what is read there; `[R]` each."""

    node: np.ndarray
    depth: np.ndarray
    begin: np.ndarray  # children of the node, if there are any
    end: np.ndarray
    following: np.ndarray  # code with which the node's first sequence goes on
    whole: np.ndarray  # whether the prefix is an eligible sequence by itself


def constrain(
    trie: Trie,
    tokens: torch.Tensor,
    start: torch.Tensor,
    scores: torch.Tensor,
    end_tokens: torch.Tensor,
    free_after: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`reference.constrain`, in place for contiguous float32 and float64; other scores take the reference."""
    if scores.dtype not in (torch.float32, torch.float64) or not scores.is_contiguous():
        return reference.constrain(trie, tokens, start, scores, end_tokens, free_after)
    arrays = Arrays(*(ALL if tensor is None else tensor.numpy() for tensor in trie[:-1]))
    node, is_blocked = torch.empty_like(start), torch.zeros_like(start, dtype=torch.bool)
    rows = len(start)
    depth, begin, end, following = np.empty((4, rows), np.int64)
    places = Places(node.numpy(), depth, begin, end, following, np.empty(rows, np.bool_))
    # A view with strides would be compiled again.
    _walk(arrays, tokens.contiguous().numpy(), start.contiguous().numpy(), places)
    rest = (end_tokens.numpy(), free_after, blocked_score(scores.dtype), scores.numpy(), is_blocked.numpy())
    on_threads(_keep_legal, (arrays, places, *rest), rows if scores.numel() >= LARGE else 1)
    return scores, node, is_blocked


# ---------------------------------------------------------------- walking


@jit()
def _walk(trie, tokens, start, places):
    """Fills in `places`: the state of each row behind its tokens."""
    alphabet, alphabet_start = trie.alphabet, trie.alphabet_start
    length, total = trie.sequences.shape[1], tokens.shape[1]
    codes, looks = np.zeros(len(start), np.int64), np.empty(len(start), np.int64)
    places.node[:] = np.where(start < 0, FREE, 0)
    places.depth[:] = 0
    for offset in range(min(length + 1, total)):
        level = min(offset, length - 1)
        low, high = np.int64(alphabet_start[level]), np.int64(alphabet_start[level + 1])
        _encode(alphabet, low, high, tokens, start + offset, codes)
        _read(trie, places, codes, looks)
        _step(trie, places, codes, high - low, start + offset < total)
    _read(trie, places, codes, looks)


# numba counts references to the arrays of a tuple wherever it takes one out: hence once in front of each loop.


@jit()
def _encode(alphabet, low, high, tokens, positions, codes):
    """The codes of the rows' tokens at one level, `alphabet[low:high]`; `NO_CODE` for tokens that it does not have."""
    least, most = np.int64(alphabet[low]), np.int64(alphabet[high - 1])
    for row in range(len(codes)):
        token = tokens[row, min(max(positions[row], 0), tokens.shape[1] - 1)]
        found = _find(alphabet, low, high, token, least, most)
        codes[row] = found - low if found >= 0 else NO_CODE


@jit()
def _read(trie, places, codes, looks):
    """
    Reads what a step of each row needs, and looks at a place near the child with the row's code. Nothing branches on
    what is read, so no row waits for another's memory.
    """
    first_child, first_sequence, code, sequences = trie.first_child, trie.first_sequence, trie.code, trie.sequences
    node, depth, begin, end, following = places.node, places.depth, places.begin, places.end, places.following
    sequence_alive, whole = trie.sequence_alive, places.whole
    last, length, all_alive = len(code) - 1, sequences.shape[1], len(sequence_alive) == 0
    for row in range(len(codes)):
        at = max(node[row], 0)
        begin[row] = min(max(first_child[at], 0), last + 1)
        end[row] = min(max(first_child[at + 1], 0), last + 1)
        following[row] = min(max(first_sequence[at], 0), len(sequences) - 1)
    for row in range(len(codes)):
        middle = (begin[row] + min(end[row], begin[row] + codes[row] + 1)) >> 1
        looks[row] = code[min(max(middle, 0), last)]
        sequence = following[row]
        after = sequences[sequence, min(depth[row], length - 1)]
        following[row] = after if depth[row] < length else PAD
        whole[row] = node[row] >= 0 and following[row] == PAD and (all_alive or sequence_alive[sequence])


@jit()
def _step(trie, places, codes, size, has_token):
    """`reference.step` of each row that has a token, at a level with `size` tokens, where `_read` has read."""
    code, node_alive = trie.code, trie.node_alive
    node, depth, begin, end, following = places.node, places.depth, places.begin, places.end, places.following
    whole, all_alive = places.whole, len(node_alive) == 0
    for row in range(len(codes)):
        if node[row] < 0 or not has_token[row]:
            continue
        if begin[row] < end[row]:
            child = _find(code, begin[row], end[row], codes[row], 0, size - 1)
            if child >= 0 and not (all_alive or node_alive[child]):
                child = np.int64(-1)
        else:
            child = node[row] if following[row] == codes[row] else np.int64(-1)
        depth[row] += child >= 0
        node[row] = child if child >= 0 else (DONE if whole[row] else DEAD)


@jit()
def _find(values, low, high, wanted, least, most):
    """
    Position of `wanted` in `values[low:high]`, -1 where it is not. The values are distinct, ascending, and none lies
    outside `[least, most]`: so few places are left to search where most of them are taken.
    """
    if wanted < least or wanted > most:
        return np.int64(-1)
    first, behind = max(low, high - 1 - (most - wanted)), min(high, low + (wanted - least) + 1)
    size = behind - first
    while size > 1:
        half = size // 2
        first += half * (values[first + half - 1] < wanted)  # no branch: other rows' searches go on meanwhile
        size -= half
    return first if size == 1 and values[first] == wanted else np.int64(-1)


# ---------------------------------------------------------------- scores


@jit()
def _keep_legal(counter, trie, places, end_tokens, free_after, lowest, scores, is_blocked):
    """Fills each row's scores but those of legal tokens; where nothing may follow, a row keeps its scores."""
    node, whole, depth = places.node, places.whole, places.depth
    code, wide, wide_start, wide_bits = trie.code, trie.wide, trie.wide_start, trie.wide_bits
    alphabet, alphabet_start, length = trie.alphabet, trie.alphabet_start, trie.sequences.shape[1]
    most = len(end_tokens)
    for level in range(length):
        most = max(most, alphabet_start[level + 1] - alphabet_start[level] + len(end_tokens))
    legal, kept, single = np.empty(most, np.int32), np.empty(most, scores.dtype), np.empty(1, trie.code.dtype)
    row = take_next(counter)
    while row < len(scores):
        at, may_end = node[row], whole[row] or node[row] < 0
        if not (at == FREE or (free_after and (at == DONE or (whole[row] and len(end_tokens) == 0)))):
            level = min(depth[row], length - 1)
            tokens = alphabet[alphabet_start[level] : alphabet_start[level + 1]]
            ends = end_tokens if may_end else end_tokens[:0]
            number = _find(wide, 0, len(wide), at, 0, len(code) - 1)
            words = wide_bits[:0] if number < 0 else wide_bits[wide_start[number] : wide_start[number + 1]]
            if number >= 0 and 32 * len(words) > tokens[-1] - tokens[0]:
                is_blocked[row] = _keep_bits(words, tokens, ends, lowest, scores[row], kept)
            else:
                codes, alive = _legal_codes(trie, places, row, len(tokens), single)
                is_blocked[row] = _keep_few(codes, alive, tokens, ends, lowest, scores[row], kept, legal)
        row = take_next(counter)


@jit()
def _legal_codes(trie, places, row, size, single):
    """The codes that may follow a state at a level with `size` tokens, and which of them are alive; `ALL` for all."""
    begin, end, following = places.begin[row], places.end[row], places.following[row]
    if places.node[row] >= 0 and begin < end:
        end = min(end, begin + size)
        return trie.code[begin:end], trie.node_alive[begin:end]
    single[0] = following
    count = 1 if places.node[row] >= 0 and following != PAD else 0
    return single[:count], trie.node_alive[:0]


@jit()
def _keep_few(codes, alive, tokens, ends, lowest, scores, kept, legal):
    """Takes the legal tokens' scores out, fills the row and puts them back. Returns whether all of them were -inf."""
    count, last = 0, len(tokens) - 1
    for i in range(len(codes)):
        if len(alive) == 0 or alive[i]:
            legal[count] = tokens[min(max(codes[i], 0), last)]
            count += 1
    for token in ends:
        legal[count] = token
        count += 1
    if count == 0:
        return False
    blocked = True
    for i in range(count):
        kept[i] = scores[legal[i]]
        blocked &= kept[i] == -np.inf
    scores[:] = -np.inf
    for i in range(count):
        scores[legal[i]] = lowest if blocked else kept[i]
    return blocked


@jit()
def _keep_bits(words, tokens, ends, lowest, scores, kept):
    """
    Goes once through the row from the first to the last of the level's `tokens`, with a bit for each legal one.
    Returns whether all legal ones were -inf.
    """
    if len(ends) == 0 and not words.any():
        return False
    for i in range(len(ends)):
        kept[i] = scores[ends[i]]
    first, behind = tokens[0], tokens[-1] + 1
    level = scores[first:behind]
    scores[:first] = -np.inf
    scores[behind:] = -np.inf
    _select(words, level)
    for i in range(len(ends)):
        scores[ends[i]] = kept[i]
    if not (_are_blocked(level) and _are_blocked(kept[: len(ends)])):
        return False
    for i in range(len(level)):
        if words[i // 32] >> (i % 32) & 1:
            level[i] = lowest
    for token in ends:
        scores[token] = lowest
    return True


@jit()
def _select(words, scores):
    """Fills the scores whose bits are 0."""
    fill = np.full(1, -np.inf, scores.dtype)[0]  # a plain -inf would have each score made a double and back
    for number in range(len(scores) // 32):
        word = np.uint32(words[number])
        for i in range(32):
            at = 32 * number + i
            scores[at] = scores[at] if (word >> np.uint32(i)) & np.uint32(1) else fill
    for i in range(len(scores) // 32 * 32, len(scores)):
        if not words[i // 32] >> (i % 32) & 1:
            scores[i] = -np.inf


@jit()
def _are_blocked(scores):
    """Whether all scores are -inf; the first that is not will do."""
    for score in scores:  # noqa: SIM110, numba has no all()
        if score != -np.inf:
            return False
    return True
