"""
The scheduler again, as one would explain it: every step looks at every request. `rank.py` is tested against it.

    1. Each running request gets its next token, or the next chunk of its prompt; a token that needs a new KV block
       and finds none sends the request that was admitted last back to the queue.
    2. While tokens, seats and blocks are left, requests are admitted from the queue, with blocks for the whole prompt.
"""

from .pool import BlockPool
from .requests import Job
from .settings import Scheduler
from .step import Batch


class ReferenceRank:
    """Waiting and running requests, scheduled and completed as `rank.Rank` does it."""

    def __init__(self, settings: Scheduler, pool: BlockPool):
        self.settings, self.pool = settings, pool
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.number = 0
        self.lengths: dict[Job, int] = {}  # KV length of a request that decodes

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def schedule(self, now: float) -> Batch | None:
        self.number += 1
        preempted = self._preempt_until_blocks_suffice()
        batch = self._decode()
        budget = self.settings.max_num_batched_tokens - batch.n
        for job in self.running:
            if job.computed < job.prompt:
                budget -= self._prefill(job, batch, budget)
        while self.waiting and budget > 0 and len(self.running) < self.settings.max_num_seqs and not preempted:
            job = self.waiting[0]
            must_wait = not self.settings.chunked_prefill and batch.tokens and job.prompt > budget
            if must_wait or not self.pool.admit(job):
                break
            self.running.append(self.waiting.pop(0))
            job.scheduled = now if job.scheduled < 0 else job.scheduled
            if job.is_carried:
                job.computed = job.prompt - 1
            budget -= self._prefill(job, batch, budget if self.settings.chunked_prefill else job.prompt)
        if batch.n or batch.chunks:
            return batch
        self.number -= 1
        return None

    def complete(self, batch: Batch, now: float) -> list[Job]:
        for job in batch.begins:
            job.first = now if job.first < 0 else job.first
        for job in batch.ends:
            job.last = now
            self.running.remove(job)
            self.pool.release(job)
        return batch.ends

    def _decode(self) -> Batch:
        """One token for each request that decodes."""
        decoding = [job for job in self.running if job in self.lengths]
        lengths = [self.lengths[job] for job in decoding]
        longest, shortest = (max(lengths), min(lengths)) if lengths else (0, 0)
        batch = Batch(self.number, [], len(decoding), sum(lengths), longest, shortest)
        for job in decoding:
            if self.lengths[job] % self.pool.block_size == 0:
                self.pool.take(1)
                job.blocks += 1
            self.lengths[job] += 1
            job.left -= 1
            if job.left == 0:
                del self.lengths[job]
                batch.ends.append(job)
        return batch

    def _prefill(self, job: Job, batch: Batch, budget: int) -> int:
        tokens = min(job.prompt - job.computed, budget)
        if tokens:
            batch.chunks.append((tokens, job.computed))
            job.computed += tokens
        if tokens and job.computed == job.prompt:
            batch.begins.append(job)
            job.left -= 1
            if job.left:
                self.lengths[job] = job.prompt
            else:
                batch.ends.append(job)
        return tokens

    def _preempt_until_blocks_suffice(self) -> bool:
        preempted = False
        while sum(length % self.pool.block_size == 0 for length in self.lengths.values()) > self.pool.free:
            job = next(job for job in reversed(self.running) if job.left)
            self.running.remove(job)
            self.waiting.insert(0, job)
            self.pool.release(job)
            if job in self.lengths:
                job.prompt = self.lengths.pop(job) + 1  # its tokens so far, and the one that is not in the cache yet
            job.computed, job.is_carried = 0, False
            job.preemptions += 1
            preempted = True
        return preempted
