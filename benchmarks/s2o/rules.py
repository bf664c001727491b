"""Which keys the peers of S2O visit, as plain masks: the rule of each paper, none of its kernels.

Every rule looks at one head and has one knob that moves the density, 1 being dense:

    rule(query [N, D], key [N, D], share) -> visited [query blocks, N], bool

Row b says which keys all rows of query block b visit, as far as they do not lie in a row's future. Peers keep one mask
per query head. N is a multiple of `BLOCK`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

Rule = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]

BLOCK = 128  # queries and keys of a block
SEGMENT = 256  # keys that PBS-Attn permutes among themselves, the default of its authors' code
STRIDE = 8  # of XAttention, the finer of the two that its paper recommends
LAST = 64  # queries that vertical-slash estimates from, and rows of its blocks
FIRST_COLUMNS, NEAR_SLASHES = 30, 100  # that vertical-slash always visits
MEAN_SEGMENT, FIRST_KEYS = 512, 16  # queries that share an order, and keys that all visit, where the paper names none
SLASHES_PER_COLUMN = 4  # how XAttention's authors split a budget for vertical-slash between the two


def block_top_k(query: torch.Tensor, key: torch.Tensor, share: float) -> torch.Tensor:
    """Mean-pooled blocks: the best `share` of the past ones, and always the first and the query's own."""
    blocks = torch.arange(len(key) // BLOCK, device=key.device)
    past = blocks < blocks[:, None]
    logits = (_pooled(query) @ _pooled(key).T).masked_fill(~past, -torch.inf)
    place = logits.argsort(descending=True).argsort()  # of each key block in the order of its query block
    chosen = place < (share * past.sum(-1, keepdim=True)).ceil()
    return _as_keys(chosen | (blocks == 0) | (blocks == blocks[:, None]))


def permuted_blocks(query: torch.Tensor, key: torch.Tensor, share: float) -> torch.Tensor:
    """PBS-Attn, arXiv 2510.21270: keys sorted inside segments, then pooled blocks until `share` of their mass.

    As in the authors' code: keys are sorted by the mean attention of the last query block, queries stay in place, the
    query's own segment is dense, and the block that holds the first token is always visited.
    """
    scale = key.shape[1] ** -0.5
    wanted = (query[-BLOCK:] @ key.T * scale).softmax(-1).mean(0)  # [N]
    pieces = wanted.split(SEGMENT)
    order = torch.cat([piece.argsort(descending=True) + index * SEGMENT for index, piece in enumerate(pieces)])
    segment = torch.arange(len(key) // BLOCK, device=key.device) // (SEGMENT // BLOCK)
    past, own = segment < segment[:, None], segment == segment[:, None]
    logits = (_pooled(query) @ _pooled(key[order]).T * scale).masked_fill(~past, -torch.inf)
    mass = logits.softmax(-1).nan_to_num()  # the first segment has no past
    first = (order == 0).view(-1, BLOCK).any(-1)
    chosen = _heaviest(mass, share, torch.zeros_like(past)) & past | own | first
    visited = torch.empty(len(chosen), len(key), dtype=torch.bool, device=key.device)
    visited[:, order] = _as_keys(chosen)
    return visited


def vertical_slash(query: torch.Tensor, key: torch.Tensor, share: float) -> torch.Tensor:
    """MInference, arXiv 2407.02490: the columns and the diagonals that the last 64 queries want most.

    `share` of all columns and four times as many diagonals. As in its kernel, the rows of a block visit a diagonal's
    keys together; columns are visited singly.
    """
    length, scale = len(key), key.shape[1] ** -0.5
    position = torch.arange(length, device=key.device)
    distance = position[-LAST:, None] - position  # [LAST, N]
    mass = (query[-LAST:] @ key.T * scale).masked_fill(distance < 0, -torch.inf).softmax(-1)
    columns = max(FIRST_COLUMNS, round(share * length))
    slashes = max(NEAR_SLASHES, round(SLASHES_PER_COLUMN * share * length))

    by_column = mass.sum(0)
    by_column[:FIRST_COLUMNS] = torch.inf
    # A key in the future has no mass, so it may count for any distance.
    by_distance = torch.zeros_like(by_column).scatter_add_(0, distance.clamp(min=0).flatten(), mass.flatten())
    by_distance[:NEAR_SLASHES] = torch.inf
    vertical, slash = _best(by_column, columns), _best(by_distance, slashes)

    # The rows from a on meet key j if there is a slash at a distance from a - j to a - j + LAST - 1.
    met = F.pad(slash, (LAST - 1, LAST - 1)).unfold(0, LAST, 1).any(-1)  # of a - j, from -(LAST - 1) on
    visited = vertical.repeat(length // LAST, 1)
    for row, end in zip(visited, range(LAST, length + 1, LAST)):
        row[:end] |= met[:end].flip(0)
    return visited


def antidiagonal(query: torch.Tensor, key: torch.Tensor, share: float) -> torch.Tensor:
    """XAttention, arXiv 2503.16428: blocks until `share` of the mass that strided antidiagonals promise.

    The first block and the query's own come before all others and count for the mass, as in the authors' code.
    """
    turned = query.view(-1, STRIDE, query.shape[1]).flip(1).flatten(1)  # [N / STRIDE, STRIDE * D]
    logits = turned @ key.view(-1, STRIDE * key.shape[1]).T * (key.shape[1] ** -0.5 / STRIDE)
    future = torch.ones_like(logits, dtype=torch.bool).triu(1)
    mass = logits.masked_fill_(future, -torch.inf).softmax(-1)
    blocks = torch.arange(len(key) // BLOCK, device=key.device)
    mass = mass.view(len(blocks), BLOCK // STRIDE, len(blocks), BLOCK // STRIDE).sum((1, 3))
    given = (blocks == 0) | (blocks == blocks[:, None])
    return _as_keys(_heaviest(mass, share, given))


def sliding_window(query: torch.Tensor, key: torch.Tensor, share: float) -> torch.Tensor:
    """The first block, the query's own, and before it a window of `share` of the sequence."""
    position = torch.arange(len(key), device=key.device)
    begins = position[::BLOCK, None]
    return (position < BLOCK) | (position >= begins - round(share * len(key)))


def mean_query_order(query: torch.Tensor, key: torch.Tensor, share: float) -> torch.Tensor:
    """S2O as its paper orders keys: the segment's own, the first ones, and `share` of the others by the mean query."""
    visited = torch.zeros(len(key) // BLOCK, len(key), dtype=torch.bool, device=key.device)
    for begin in range(0, len(key), MEAN_SEGMENT):
        rows = slice(begin // BLOCK, (begin + MEAN_SEGMENT) // BLOCK)
        wanted = key[:begin] @ query[begin : begin + MEAN_SEGMENT].mean(0)
        visited[rows, :begin] = _best(wanted, math.ceil(share * begin))
        visited[rows, begin : begin + MEAN_SEGMENT] = True
    visited[:, :FIRST_KEYS] = True
    return visited


RULES: dict[str, Rule] = {
    "block top-k": block_top_k,
    "PBS-Attn": permuted_blocks,
    "vertical-slash": vertical_slash,
    "antidiagonal": antidiagonal,
    "sliding window": sliding_window,
    "mean-query order": mean_query_order,
}


def _pooled(states: torch.Tensor) -> torch.Tensor:
    return states.view(-1, BLOCK, states.shape[1]).mean(1)  # [blocks, D]


def _heaviest(mass: torch.Tensor, share: float, given: torch.Tensor) -> torch.Tensor:
    """Of each row of `mass` `[blocks, blocks]` those `given`, then the heaviest, until they hold `share` of it."""
    order = mass.masked_fill(given, torch.inf).argsort(descending=True)
    falling = mass.gather(1, order)
    before = falling.cumsum(1) - falling
    # Rounding may fill a row early, or mass be too small for float32; all of it means every block all the same.
    needed = before < share * mass.sum(1, keepdim=True) if share < 1 else torch.ones_like(given)
    return given.scatter(1, order, needed) | given


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the `count` largest of `scores` `[n]`."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[scores.topk(min(count, len(scores))).indices] = True
    return mask


def _as_keys(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.repeat_interleave(BLOCK, dim=1)
