"""KV blocks of one scheduler: how many are free, and which hold a prefix that another prompt may reuse."""

from collections import OrderedDict
from collections.abc import Sequence

from .requests import Job


class BlockPool:
    """
    A prompt's whole blocks are shared by their hash. Blocks that nobody holds stay reusable, least recently used first
    out, until their room is needed; they count as free.

    Args:
        total: blocks.
        block_size: tokens of a block.
        caches_prefixes: whether blocks are shared at all.

    The unit of sharing is the trace's own block, 16 tokens in some traces and 512 in others: `per_unit` of our blocks.
    """

    def __init__(self, total: int, block_size: int = 16, caches_prefixes: bool = True):
        self.total = self.free = total
        self.block_size = block_size
        self.caches_prefixes = caches_prefixes
        self.per_unit = 1
        self.holders: dict[int, int] = {}  # unit: jobs that hold it
        self.idle: OrderedDict[int, None] = OrderedDict()  # units that nobody holds, the oldest first

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def reusable(self, hash_ids: Sequence[int], hash_block: int, prompt: int) -> int:
        """How many units of a prompt are at hand. The last token is always computed, it makes the next one."""
        if not (self.caches_prefixes and hash_ids):
            return 0
        found = 0
        for unit in hash_ids[: (prompt - 1) // hash_block]:
            if unit not in self.holders and unit not in self.idle:
                break
            found += 1
        return found

    def admit(self, job: Job) -> bool:
        """Takes all blocks of a prompt, of which reusable ones are computed already; False where they do not fit."""
        request = job.request
        hits = self.reusable(request.hash_ids, request.hash_block, job.prompt)
        whole = job.prompt // request.hash_block if self.caches_prefixes and request.hash_ids else 0
        reused = dict.fromkeys(request.hash_ids[:hits])
        fresh = [u for u in request.hash_ids[hits:whole] if u not in self.holders and u not in self.idle]
        if fresh or reused:
            self.per_unit = max(request.hash_block // self.block_size, 1)
        held = sum(unit in self.holders for unit in reused)
        blocks = self.blocks_for(job.prompt)
        cost = blocks - held * self.per_unit
        if cost > self.free:
            return False
        job.units = tuple(dict.fromkeys([*reused, *fresh]))
        for unit in job.units:
            self.idle.pop(unit, None)
            self.holders[unit] = self.holders.get(unit, 0) + 1
        job.blocks = blocks
        job.computed = job.reused = hits * request.hash_block
        self.take(cost)
        return True

    def take(self, blocks: int) -> None:
        """Blocks that the caller has seen to be free; what is reusable makes room, the oldest first."""
        if blocks > self.free:
            raise RuntimeError(f"{blocks} KV blocks are needed and {self.free} of {self.total} are free")
        self.free -= blocks
        while len(self.idle) * self.per_unit > self.free:
            self.idle.popitem(last=False)

    def release(self, job: Job) -> None:
        """Gives back what a job held; shared blocks stay with their other holders."""
        shared = 0
        for unit in reversed(job.units):  # the end of a prompt is the first to go
            self.holders[unit] -= 1
            if self.holders[unit]:
                shared += 1
            else:
                del self.holders[unit]
                self.idle[unit] = None
        self.free += job.blocks - shared * self.per_unit
        job.blocks, job.units = 0, ()
