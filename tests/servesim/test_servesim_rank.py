"""The scheduler that does constant work makes the batches of the one that looks at every request."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_infeco.servesim import Request, Scheduler
from hf_infeco.servesim.pool import BlockPool
from hf_infeco.servesim.rank import Rank
from hf_infeco.servesim.reference import ReferenceRank
from hf_infeco.servesim.requests import Job
from hf_infeco.servesim.step import StepTime

from .profiles import SHAPE, TABLES, instance

requests = st.lists(
    st.tuples(st.integers(1, 90), st.integers(1, 40), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=25
)
schedulers = st.builds(
    Scheduler,
    max_num_seqs=st.integers(1, 9),
    max_num_batched_tokens=st.integers(9, 100),
    block_size=st.sampled_from([4, 16]),
    chunked_prefill=st.booleans(),
    prefix_caching=st.booleans(),
)


def drive(rank_class, scheduler, lengths, spare_blocks):
    """All batches until everything is through, with what the pool has left after each; results a step late."""
    largest = max(-(-(a + b) // scheduler.block_size) for a, b, _, _ in lengths)
    pool = BlockPool(largest + spare_blocks, scheduler.block_size, scheduler.prefix_caching)
    rank = rank_class(scheduler, pool)
    jobs = []
    for number, (tokens_in, tokens_out, _, family) in enumerate(lengths):
        ids = tuple(1000 * family + i for i in range(tokens_in // 16)) if family else ()
        jobs.append(Job(Request(0.0, tokens_in, tokens_out, ids, 16, number=number), 0.0))
    arrivals = [(sum(gap for _, _, gap, _ in lengths[: i + 1]), job) for i, job in enumerate(jobs)]
    seen, before, step = [], None, 0
    while arrivals or rank.running or rank.waiting:
        while arrivals and arrivals[0][0] <= step:
            rank.submit(arrivals.pop(0)[1])
        batch = rank.schedule(float(step))
        if batch is not None:
            seen.append((*astuple_of(batch), pool.free))
        if before is not None:
            rank.complete(before, float(step))
        before = batch
        step += 1
        assert 0 <= pool.free <= pool.total
        assert step < 10_000
    assert pool.free == pool.total and not pool.holders
    return seen, [(job.first, job.last, job.preemptions, job.reused) for job in jobs]


def astuple_of(batch):
    numbers = [job.request.number for job in batch.ends], [job.request.number for job in batch.begins]
    return batch.number, tuple(batch.chunks), batch.n, batch.kv_sum, batch.kv_max, batch.kv_min, *map(sorted, numbers)


@settings(max_examples=60, deadline=None)
@given(schedulers, requests, st.integers(0, 30))
def test_constant_work_makes_the_same_batches(scheduler, lengths, spare):
    assert drive(Rank, scheduler, lengths, spare) == drive(ReferenceRank, scheduler, lengths, spare)


@settings(max_examples=40, deadline=None)
@given(schedulers, requests, st.integers(0, 30))
def test_every_token_is_made_once_and_every_block_comes_back(scheduler, lengths, spare):
    """`drive` checks the blocks after every step."""
    seen, ends = drive(Rank, scheduler, lengths, spare)
    made = sum(batch[2] + len(batch[7]) for batch in seen)
    assert made == sum(tokens_out for _, tokens_out, _, _ in lengths)
    assert all(0 <= first <= last for first, last, _, _ in ends)


@settings(max_examples=25, deadline=None)
@given(schedulers, requests)
def test_step_times_of_both_agree_to_a_nanosecond(tmp_path_factory, scheduler, lengths):
    formula = StepTime(TABLES, SHAPE, instance(tmp_path_factory.getbasetemp(), scheduler=scheduler))
    total = []
    for rank_class in (Rank, ReferenceRank):
        rank = rank_class(scheduler, BlockPool(200, scheduler.block_size, False))
        for number, (tokens_in, tokens_out, _, _) in enumerate(lengths):
            rank.submit(Job(Request(0.0, tokens_in, tokens_out, number=number), 0.0))
        seconds = 0.0
        while (batch := rank.schedule(0.0)) is not None:
            seconds += formula([batch])
            rank.complete(batch, seconds)
        total.append(seconds)
    assert total[0] == pytest.approx(total[1], abs=1e-9)


def test_a_preempted_request_goes_to_the_front_and_makes_all_its_tokens():
    seen, ends = drive(Rank, Scheduler(block_size=4), [(12, 12, 0, 0), (12, 12, 0, 0)], 1)
    assert [preempted for _, _, preempted, _ in ends] == [0, 1]
    assert sum(batch[2] + len(batch[7]) for batch in seen) == 24


def test_a_prompt_reuses_the_whole_blocks_of_one_before():
    _, ends = drive(Rank, Scheduler(block_size=16), [(40, 3, 0, 1), (40, 3, 9, 1)], 20)
    assert [reused for _, _, _, reused in ends] == [0, 32]


def test_the_last_token_of_a_prompt_is_computed_even_where_all_of_it_is_at_hand():
    _, ends = drive(Rank, Scheduler(block_size=16), [(32, 3, 0, 1), (32, 3, 9, 1)], 20)
    assert [reused for _, _, _, reused in ends] == [0, 16]
