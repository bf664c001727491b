"""
STATIC in readable torch: walk a trie flattened to CSR, and keep the scores of legal tokens only.

Source: STATIC (arXiv 2602.22647). Every distinct prefix of the allowed sequences is a node, the edges lie in one CSR
matrix, and a step reads a fixed slice of edges per row and masks the excess. Ours differs in what is stored: nodes are
numbered level by level in sorted order, so that an edge's position is its child's id and needs no column; and a prefix
that only one sequence has is the last node on its way, whose tail is read from the sorted sequences.

Shapes: R rows (beams), N sequences of up to L tokens, M nodes, V vocabulary, A distinct tokens over all levels.
"""

from itertools import pairwise
from typing import NamedTuple

import torch

PAD = -1  # code after the end of a shorter sequence: sorts before every token's
NO_CODE = -2  # code of a token that its level does not have
DEAD = -1  # state of a row whose tokens left the trie
DONE = -2  # state of a row whose tokens went on after a whole sequence
FREE = -3  # state of a row that is not constrained


class Trie(NamedTuple):
    """
    The sorted sequences and the nodes above them. A row's state is `(node, depth)`: in a tail the node stays, and the
    depth goes on.

    Attributes:
        alphabet (`torch.Tensor` of int32, `[A]`): the tokens of each level, ascending, level after level. A token's
            code is its position within its level.
        alphabet_start (`torch.Tensor` of int32, `[L + 1]`): where each level begins in `alphabet`.
        sequences (`torch.Tensor` of int16 or int32, `[N, L]`): codes of the sequences, sorted, `PAD` behind the end.
        first_child (`torch.Tensor` of int32, `[M + 1]`): children of node n are nodes `first_child[n]` up to
            `first_child[n + 1]`. A node has none if only one sequence begins with it.
        code (`torch.Tensor` of int16 or int32, `[M]`): code of the last token of a node's prefix; the root has none.
        first_sequence (`torch.Tensor` of int32, `[M]`): rank of the first sequence that begins with the prefix.
        wide (`torch.Tensor` of int32, `[W]`): the nodes that have much of their level for children, ascending.
        wide_start (`torch.Tensor` of int32, `[W + 1]`): where the bits of each begin in `wide_bits`.
        wide_bits (`torch.Tensor` of int32): of each wide node, a bit for every token from the first to the last of its
            level, set if it may follow, from the lowest bit of the first word on. They say nothing new: they are what
            a fast path reads instead of thousands of children.
        node_alive (`torch.Tensor` of bool, `[M]`, *optional*): nodes with an eligible sequence; None means all.
        sequence_alive (`torch.Tensor` of bool, `[N]`, *optional*): eligible sequences; None means all.
        widths (`tuple[int, ...]`): most children of a node at each depth, 1 if there are only tails (B_l).
    """

    alphabet: torch.Tensor
    alphabet_start: torch.Tensor
    sequences: torch.Tensor
    first_child: torch.Tensor
    code: torch.Tensor
    first_sequence: torch.Tensor
    wide: torch.Tensor
    wide_start: torch.Tensor
    wide_bits: torch.Tensor
    node_alive: torch.Tensor | None
    sequence_alive: torch.Tensor | None
    widths: tuple[int, ...]

    @property
    def length(self) -> int:
        """L, the length of the longest sequence."""
        return self.sequences.shape[1]

    def to(self, device: torch.device | str) -> "Trie":
        """The trie on a device."""
        parts = self._asdict()
        tensors = {name: part.to(device) for name, part in parts.items() if isinstance(part, torch.Tensor)}
        return Trie(**parts | tensors)

    def levels(self) -> list[tuple[int, int]]:
        """The first node of each depth from 0 to L, and the one behind the last. Reads the tensors: not in a loop."""
        bounds = [0, 1]
        for _ in range(self.length):
            bounds.append(int(self.first_child[bounds[-1]]))  # where one level's children begin, the level ends
        return list(pairwise(bounds))


def step(trie: Trie, node: torch.Tensor, depth: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """State after one more token: `node`, `depth`, `token` int64 `[R]` to the next node `[R]`, `DEAD` or `DONE`."""
    at, level = node.clamp(min=0), depth.clamp(max=trie.length - 1)
    code = _encode(trie, level, token)
    begin, end = trie.first_child[at].long(), trie.first_child[at + 1].long()
    child = _find(trie.code, begin, end, code, max(trie.widths))
    continues_tail = (begin == end) & (_next_code(trie, at, depth) == code)
    after = torch.where(continues_tail, at, child)
    if trie.node_alive is not None:
        after = after.where((after >= 0) & trie.node_alive[after.clamp(min=0)], -1)
    left = torch.where(is_whole(trie, node, depth), DONE, DEAD)
    return torch.where(node < 0, node, torch.where(after >= 0, after, left))


def walk(trie: Trie, tokens: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where the tokens of each row lead.

    Args:
        tokens (`torch.Tensor` of int64, `[R, T]`): prompts and generated tokens.
        start (`torch.Tensor` of int64, `[R]`): position of each row's first constrained token; negative for `FREE`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: node and depth, int64 `[R]`.
    """
    node, depth = torch.where(start < 0, FREE, 0), torch.zeros_like(start)
    total = tokens.shape[1]
    for offset in range(min(trie.length + 1, total)):  # one token behind the longest sequence makes a row DONE
        position = start + offset
        has_token = (start >= 0) & (position < total)
        token = tokens.gather(1, position.clamp(0, total - 1)[:, None])[:, 0]
        node = torch.where(has_token, step(trie, node, depth, token), node)
        depth = depth + (has_token & (node >= 0))
    return node, depth


def is_whole(trie: Trie, node: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """Whether the prefix of each state is an eligible sequence by itself, bool `[R]`; others may go on from it."""
    at = node.clamp(min=0)
    whole = (node >= 0) & (_next_code(trie, at, depth) == PAD)
    if trie.sequence_alive is not None:
        whole &= trie.sequence_alive[trie.first_sequence[at].long()]
    return whole


def rank(trie: Trie, node: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """Rank of the sequence that each state completes, int64 `[R]`; -1 where it completes none."""
    return torch.where(is_whole(trie, node, depth), trie.first_sequence[node.clamp(min=0)].long(), -1)


def continuations(
    trie: Trie, node: torch.Tensor, depth: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The legal next tokens of each state.

    Args:
        width (`int`): slots per row: `trie.widths[depth]`, or `max(trie.widths)` where rows are at several depths.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: position of the token in `alphabet` and next node, int64
        `[R, width]`, and which slots are legal, bool `[R, width]`. The others hold the first token of the row's level,
        so that they may be read blindly.
    """
    at, level = node.clamp(min=0), depth.clamp(max=trie.length - 1)
    begin, end = trie.first_child[at].long(), trie.first_child[at + 1].long()
    is_tail = (begin == end)[:, None]
    slot = torch.arange(width, device=node.device)
    child = (begin[:, None] + slot).minimum((end - 1).maximum(begin)[:, None]).clamp(max=len(trie.code) - 1)
    after = torch.where(is_tail, at[:, None], child)
    code = torch.where(is_tail, _next_code(trie, at, depth)[:, None], trie.code[child].long())
    legal = (slot < (end - begin).clamp(min=1)[:, None]) & (code >= 0) & (node >= 0)[:, None]
    if trie.node_alive is not None:
        legal &= trie.node_alive[after]
    return trie.alphabet_start[level].long()[:, None] + code.where(legal, 0), after, legal


def constrain(
    trie: Trie,
    tokens: torch.Tensor,
    start: torch.Tensor,
    scores: torch.Tensor,
    end_tokens: torch.Tensor,
    free_after: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Scores in which only legal tokens are left, the others -inf.

    A whole sequence may be followed by `end_tokens`, and so may rows that are `DONE` or `DEAD`. `FREE` rows, and those
    that nothing may follow, keep their scores. Where every legal token came in as -inf, they get `blocked_score`
    instead, so that no row is ever all -inf.

    Args:
        tokens, start: see `walk`.
        scores (`torch.Tensor`, float `[R, V]`): raw logits or log-probabilities.
        end_tokens (`torch.Tensor` of int64, `[E]`): tokens that may follow a sequence.
        free_after (`bool`): whether a row is unconstrained after a sequence and its end token.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: new scores `[R, V]`, each row's state, int64 `[R]`, and
        which rows had only -inf to choose from, bool `[R]`.
    """
    node, depth = walk(trie, tokens, start)
    entry, _, legal = continuations(trie, node, depth, max(trie.widths))
    allowed = torch.zeros(scores.shape, dtype=torch.int8, device=scores.device)
    token = trie.alphabet[entry].long()
    allowed.scatter_reduce_(1, token, legal.to(torch.int8), "amax")  # illegal slots share a token, legal ones win
    whole = is_whole(trie, node, depth)
    may_end = whole | (node == DEAD) | (node == DONE)
    allowed[:, end_tokens] = allowed[:, end_tokens].maximum(may_end[:, None].to(torch.int8))

    allowed = allowed.bool()
    is_free = (node == FREE) | ~allowed.any(1)
    if free_after:
        is_free |= node == DONE
        if len(end_tokens) == 0:
            is_free |= whole
    kept = scores.masked_fill(~(allowed | is_free[:, None]), float("-inf"))
    is_blocked = (kept.amax(1) == float("-inf")) & ~is_free
    return kept.masked_fill(allowed & is_blocked[:, None], blocked_score(scores.dtype)), node, is_blocked


def blocked_score(dtype: torch.dtype) -> float:
    """
    What tokens get that were forbidden though nothing else is legal: below every score that is meant, far enough from
    the lowest number that a temperature below 1 does not make it -inf, and far above the -1e9 with which transformers
    marks beams that stand for none.
    """
    return max(-1e4, torch.finfo(dtype).min / 64)


# ---------------------------------------------------------------- sorted searches


def _encode(trie: Trie, level: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Codes of tokens at their levels, `NO_CODE` for a token that its level does not have."""
    begin, end = trie.alphabet_start[level].long(), trie.alphabet_start[level + 1].long()
    found = _find(trie.alphabet, begin, end, token, len(trie.alphabet))
    return torch.where(found >= 0, found - begin, NO_CODE)


def _next_code(trie: Trie, at: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """Code that follows a prefix in the first sequence that has it; `PAD` at its end."""
    code = trie.sequences[trie.first_sequence[at].long(), depth.clamp(max=trie.length - 1)].long()
    return code.where(depth < trie.length, PAD)


def _find(
    values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, wanted: torch.Tensor, widest: int
) -> torch.Tensor:
    """Position of `wanted` in the ascending `values[low:high]` of each row, -1 where it is not; int64 `[R]`."""
    last, end = len(values) - 1, high
    for _ in range(widest.bit_length()):
        middle = (low + high) // 2
        is_below = (low < high) & (values[middle.clamp(max=last)] < wanted)
        low, high = torch.where(is_below, middle + 1, low), torch.where(is_below, high, middle.maximum(low))
    found = (low < end) & (values[low.clamp(max=last)] == wanted)
    return torch.where(found, low, -1)
