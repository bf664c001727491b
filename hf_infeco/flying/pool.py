"""The KV pool at every width: one tensor of bytes, whose blocks hold more tokens of fewer heads in a wider group."""

import math
from typing import Any, NamedTuple

import torch
from transformers.generation.continuous_batching.cache_allocators import CachePool
from transformers.generation.continuous_batching.requests import RequestState

from .. import compat
from .plans import Plan
from .views import Seat

RESERVED = 2  # sectors at the beginning of the tensor, which transformers reads and writes as trash

# What a layout sets on transformers' cache, and what is given back if a switch is rolled back.
LAID_OUT = (
    "bytes_per_sector",
    "cache_allocators",
    "layer_to_allocator",
    "max_decode_fast_path_length",
    "max_tokens_read",
    "num_blocks",
    "num_sectors",
    "pool",
    "tokens_per_sector",
)


class Layout(NamedTuple):
    """
    Attributes:
        allocators (`dict[str, Any]`): by attention type, not registered with a tensor yet.
        bytes_per_sector, num_sectors (`int`): of this process; the number is the same in the whole group.
    """

    allocators: dict[str, Any]
    bytes_per_sector: int
    num_sectors: int


class Pool:
    """
    transformers' paged cache of one process, laid out again for each width on the tensor that it has.

    Args:
        cache (`PagedAttentionCache`): at width 1.
        plan (`Plan`): which heads a process holds.
        page_size (`int`): tokens of a page at width 1.

    Source: arXiv 2602.22593, section 4.2 (blocks of constant bytes).
    """

    def __init__(self, cache: Any, plan: Plan, page_size: int):
        self.cache, self.plan, self.page_size = cache, plan, page_size

    def layout(self, seat: Seat) -> Layout:
        """The cache as `seat` sees it. Needs nobody else: what the others can hold follows from their heads."""
        total = self.plan.num_key_value_heads
        # Uneven heads: the process with most of them decides how many tokens fit into the bytes of a page.
        page = self.page_size * total // max(seat.heads)
        layouts = {heads: self._of_heads(heads, page) for heads in set(seat.heads)}
        num_sectors = min(layout.num_sectors for layout in layouts.values())
        return layouts[seat.heads[seat.rank]]._replace(num_sectors=num_sectors)

    def _of_heads(self, num_heads: int, page: int) -> Layout:
        cache, allocators = self.cache, {}
        for name, old in cache.cache_allocators.items():
            allocators[name] = type(old)(
                index=old.index,
                config=cache.config,
                num_key_value_heads=num_heads,
                cache_dtype=cache.dtype,
                page_size=page,
                layer_indices=old.layer_indices,
                allow_block_sharing=cache.allow_block_sharing,
            )
        sector = math.lcm(*(each.bytes_per_block for each in allocators.values()), 128)
        return Layout(allocators, sector, cache.cache_tensor.numel() // sector - RESERVED)

    def budget(self, seat: Seat) -> int:
        """Tokens that one request can have at most, prompt and answer together, at the width of `seat`."""
        layout = self.layout(seat)

        def fits(num_tokens: int) -> bool:
            sectors = 0
            for allocator in layout.allocators.values():
                blocks_per_sector = layout.bytes_per_sector // allocator.bytes_per_block
                sectors += -(-allocator.needs_new_blocks("", 0, num_tokens) // blocks_per_sector)
            return sectors <= layout.num_sectors

        low, high = 0, 1
        while fits(high) and high < 1 << 40:  # a cache of windows only holds requests of any length
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def saved(self) -> dict[str, Any]:
        """What `lay_out` changes, as it is now."""
        return {name: getattr(self.cache, name) for name in LAID_OUT}

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes a layout back; the bytes in the tensor are the caller's to write again."""
        vars(self.cache).update(saved)
        self.cache.cache_tensor[: RESERVED * self.cache.bytes_per_sector].zero_()

    def lay_out(self, seat: Seat) -> None:
        """An empty cache for this width. What was in the tensor is lost."""
        layout, cache = self.layout(seat), self.cache
        sector, pool = layout.bytes_per_sector, CachePool(layout.num_sectors, len(layout.allocators))
        tensor = cache.cache_tensor[: (layout.num_sectors + RESERVED) * sector]
        tensor[: RESERVED * sector].zero_()
        for allocator in layout.allocators.values():
            allocator.register_cache_tensor(sector, layout.num_sectors * sector, tensor, pool)
        allocators = list(layout.allocators.values())
        by_layer = {layer: allocator for allocator in allocators for layer in allocator.layer_indices}
        fast = min(each.tokens_per_page for each in allocators) * cache.max_blocks_per_request
        values = {
            "bytes_per_sector": sector,
            "cache_allocators": layout.allocators,
            "layer_to_allocator": by_layer,
            "max_decode_fast_path_length": fast if cache.max_decode_fast_path_length else 0,
            "max_tokens_read": max(each.tokens_per_page * each.num_blocks for each in allocators),
            "num_blocks": layout.num_sectors * sector // sum(each.bytes_per_block for each in allocators),
            "num_sectors": layout.num_sectors,
            "pool": pool,
            "tokens_per_sector": max(sector // each.bytes_per_block * each.tokens_per_page for each in allocators),
        }
        vars(cache).update(values)

    # ------------------------------------------------------------ keys and values of one request

    def bytes_per_token(self) -> int:
        """Of all heads and layers."""
        numbers = sum(len(each.layer_indices) * each.head_dim for each in self.cache.cache_allocators.values())
        return 2 * numbers * self.plan.num_key_value_heads * self.cache.dtype.itemsize

    def shape(self, name: str, num_tokens: int, num_heads: int) -> tuple[int, int, int, int, int]:
        """Of what `read` returns for an attention type: layers, keys and values, tokens, heads, head_dim."""
        allocator = self.cache.cache_allocators[name]
        kept = allocator.get_seqlen_k(num_tokens, 0) if num_tokens else 0
        return len(allocator.layer_indices), 2, kept, num_heads, allocator.head_dim

    def read(self, state: RequestState) -> dict[str, torch.Tensor]:
        """A copy of the KV of a request, by attention type: `[layers, 2, tokens, heads, head_dim]`."""
        found, length = {}, state.current_len()
        for name, allocator in self.cache.cache_allocators.items():
            indices = allocator.get_read_indices(state.request_id, length, 0) if length else []
            rows = torch.tensor(indices, dtype=torch.long, device=self.cache.device)
            layers = [
                torch.stack([view[rows] for view in compat.kv_views(allocator, i)]) for i in allocator.layer_indices
            ]
            found[name] = torch.stack(layers)
        return found

    def write(self, state: RequestState, values: dict[str, torch.Tensor]) -> None:
        """Into blocks that the request has already, and makes its full blocks known to prefix sharing."""
        length = state.current_len()
        for name, allocator in self.cache.cache_allocators.items():
            count = values[name].shape[2]
            if count == 0:
                continue
            indices = allocator.get_write_indices(state.request_id, length - count, count)
            rows = torch.tensor(indices, dtype=torch.long, device=self.cache.device)
            for layer, pair in zip(allocator.layer_indices, values[name], strict=True):
                for view, rows_of in zip(compat.kv_views(allocator, layer), pair, strict=True):
                    view.index_copy_(0, rows, rows_of)
        if self.cache.use_prefix_sharing:
            pages = {name: length // each.tokens_per_page for name, each in self.cache.cache_allocators.items()}
            self.cache.mark_complete_blocks(state, {name: count for name, count in pages.items() if count})

    def num_used_blocks(self) -> int:
        """Blocks that requests own; cached ones of prefix sharing are free to go."""
        allocators = self.cache.cache_allocators.values()
        return sum(len(blocks) for each in allocators for blocks in each.block_table.values())

    def use(self) -> float:
        """The share of the pool's bytes that requests own, from 0 to 1. Any thread may ask while the loop runs."""
        used = 0
        for allocator in self.cache.cache_allocators.values():
            owned = list(allocator.block_table.values())  # at once: the loop adds and drops requests meanwhile
            used += len(set().union(*owned)) * allocator.bytes_per_block  # requests share blocks of a common prefix
        return used / (self.cache.num_sectors * self.cache.bytes_per_sector)
