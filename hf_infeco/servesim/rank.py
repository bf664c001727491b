"""
One rank's scheduler: continuous batching as vLLM does it, with constant work for each step.

Sequences that decode grow by one token a batch. Their KV length less the batch's number therefore stays the same, and
with it the sum of all lengths needs only the count, and who needs a new KV block is told by 16 residues. A request is
touched when it is admitted, for each chunk of its prompt, when it ends and when it is preempted. `reference.py` does
the same by looking at every request in every step; both make the same batches.
"""

from collections import deque
from heapq import heapify, heappop, heappush

from .pool import BlockPool
from .requests import Job
from .settings import Scheduler
from .step import Batch

Entry = tuple[int, int, int, Job]


class Rank:
    """
    Waiting and running requests, and the blocks they hold.

    Args:
        settings: how it batches.
        pool: its KV blocks.
    """

    def __init__(self, settings: Scheduler, pool: BlockPool):
        self.settings, self.pool = settings, pool
        self.waiting: deque[Job] = deque()
        self.running: dict[Job, None] = {}  # in the order of admission
        self.prefilling: list[Job] = []  # those running whose prompt is not through
        self.admits = True  # whether waiting requests may start
        self.number = 0  # of the batch made last
        self.n = self.offsets = 0  # sequences that decode, and the sum of their offsets
        self.residues = [0] * pool.block_size  # how many offsets have each residue
        self.ending: dict[int, list[Job]] = {}  # by the number of the batch with their last token
        # Heaps of (-offset or offset, entered, number of the request, job); jobs that have left are still in them.
        self.longest: list[Entry] = []
        self.shortest: list[Entry] = []

    @property
    def load(self) -> int:
        """What vLLM's balancer compares: running requests, and waiting ones four times."""
        return 4 * len(self.waiting) + len(self.running)

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def schedule(self, now: float) -> Batch | None:
        """The next batch, or None where nothing can be computed."""
        if not self.running and not self.waiting:
            return None
        self.number += 1
        budget = self.settings.max_num_batched_tokens
        preempted = self._make_room()
        batch = self._decoding()
        budget -= batch.n
        for job in list(self.prefilling):
            budget -= self._chunk(job, batch, budget)
        if not preempted:
            self._admit(batch, budget, now)
        if not batch.n and not batch.chunks:
            self.number -= 1
            return None
        return batch

    def release(self, moves: bool) -> tuple[list[Job], int]:
        """
        All jobs between two batches, the running ones first, and how many tokens of those that decode the cache held.
        Where it `moves`, these go on elsewhere; else they begin anew, as prompts that are half done do.
        """
        decoding = [job for job in self.running if job.is_decoding]
        held = sum(job.offset + self.number + 1 for job in decoding)
        for job in list(reversed(self.running)):
            self._start_over(job, self.number + 1)
        for job in decoding:
            job.is_carried = moves
        jobs = list(self.waiting)
        self.waiting.clear()
        return jobs, held

    def complete(self, batch: Batch, now: float) -> list[Job]:
        """The batch is through: tokens are out, and those that had their last one leave."""
        for job in batch.begins:
            if job.first < 0:
                job.first = now
        for job in batch.ends:
            job.last = now
            del self.running[job]
            self.pool.release(job)
        return batch.ends

    # ---------------------------------------------------------------- the parts of a batch

    def _make_room(self) -> bool:
        """Blocks for the tokens of this step; where they are short, the last one admitted starts over."""
        needed = self.residues[-self.number % self.pool.block_size]
        preempted = False
        while needed > self.pool.free:
            job = next(job for job in reversed(self.running) if job.finishes < 0 or job.is_decoding)
            self._start_over(job, self.number)
            job.preemptions += 1
            preempted = True
            needed = self.residues[-self.number % self.pool.block_size]
        if needed:
            self.pool.take(needed)
        return preempted

    def _decoding(self) -> Batch:
        number = self.number
        longest = shortest = 0
        if self.n:
            longest, shortest = number - _top(self.longest), number + _top(self.shortest)
        batch = Batch(number, [], self.n, self.offsets + self.n * number, longest, shortest)
        for job in self.ending.pop(number, ()):
            self._leave(job, number + 1)
            batch.ends.append(job)
        return batch

    def _chunk(self, job: Job, batch: Batch, budget: int) -> int:
        """As much of a prompt as the budget has room for."""
        tokens = min(job.prompt - job.computed, budget)
        if tokens:
            batch.chunks.append((tokens, job.computed))
            job.computed += tokens
            if job.computed == job.prompt:
                self._begin(job, batch)
        return tokens

    def _admit(self, batch: Batch, budget: int, now: float) -> None:
        """From the queue while there is room: tokens in the step, seats, and blocks for the whole prompt."""
        settings = self.settings
        while self.admits and self.waiting and budget and len(self.running) < settings.max_num_seqs:
            job = self.waiting[0]
            if not settings.chunked_prefill and batch.tokens and job.prompt > budget:
                return
            if not self.pool.admit(job):
                return
            self.waiting.popleft()
            if job.scheduled < 0:
                job.scheduled = now
            if job.is_carried:
                job.computed = job.prompt - 1  # its KV came over a link; the last token is computed for the next one
            self.running[job] = None
            self.prefilling.append(job)
            budget -= self._chunk(job, batch, budget if settings.chunked_prefill else job.prompt)
            budget = max(budget, 0)

    # ---------------------------------------------------------------- into and out of decoding

    def _begin(self, job: Job, batch: Batch) -> None:
        """The prompt ends with this batch and makes a token; from the next batch on the request decodes."""
        self.prefilling.remove(job)
        batch.begins.append(job)
        job.entered = self.number
        job.finishes = self.number + job.left - 1
        if job.left == 1:
            batch.ends.append(job)
            return
        job.is_decoding = True
        job.offset = job.prompt - self.number - 1
        self.n += 1
        self.offsets += job.offset
        self.residues[job.offset % self.pool.block_size] += 1
        self.ending.setdefault(job.finishes, []).append(job)
        for heap, key in ((self.longest, -job.offset), (self.shortest, job.offset)):
            if len(heap) > 2 * self.n + 64:  # those that have left and lie deep would pile up
                heap[:] = [entry for entry in heap if _is_there(entry)]
                heapify(heap)
            heappush(heap, (key, job.entered, job.request.number, job))

    def _leave(self, job: Job, number: int) -> None:
        """It decodes no more from the batch of that number on."""
        job.is_decoding = False
        self.n -= 1
        self.offsets -= job.offset
        self.residues[job.offset % self.pool.block_size] -= 1
        # The blocks of its tokens were taken one by one, for all that decode together.
        job.blocks = self.pool.blocks_for(job.offset + number)

    def _start_over(self, job: Job, number: int) -> None:
        """
        From the batch of that number on it waits in front. Its blocks go back; tokens it has made become part of the
        prompt.
        """
        del self.running[job]
        if job.is_decoding:
            self._leave(job, number)
            self.ending[job.finishes].remove(job)
            made = number - job.entered
            job.left -= made
            job.prompt += made
        else:
            self.prefilling.remove(job)
        self.pool.release(job)
        job.finishes, job.computed, job.is_carried = -1, 0, False
        self.waiting.appendleft(job)


def _top(heap: list[Entry]) -> int:
    """The first key whose job still decodes since then; what is before it goes."""
    while not _is_there(heap[0]):
        heappop(heap)
    return heap[0][0]


def _is_there(entry: Entry) -> bool:
    _, entered, _, job = entry
    return job.is_decoding and job.entered == entered
