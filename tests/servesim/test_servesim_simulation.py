"""What a simulation keeps: every request and token, the closed formula, the order of time, and its bytes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_infeco.servesim import Cluster, Correction, Link, Power, Request, Scheduler, simulate
from hf_infeco.servesim.generators import poisson, sessions
from hf_infeco.servesim.routing import POLICIES
from hf_infeco.servesim.shape import ModelShape
from hf_infeco.servesim.step import Batch, StepTime

from .profiles import CONFIG, SHAPE, TABLES, instance, same_tables, tables


def serve(folder, requests, rows=None, seed=0, transfer=None, routing="least_requests", **of):
    cluster = Cluster((instance(folder, **of),), routing, transfer)
    return simulate(cluster, requests, tables=same_tables, rows=rows, seed=seed)


def test_one_request_takes_what_the_closed_formula_says(tmp_path):
    """100 tokens in chunks of 64 and 36, the first token with the second chunk, then four steps of one token."""
    results = serve(tmp_path, [Request(1.0, 100, 5)])
    formula = StepTime(TABLES, SHAPE, instance(tmp_path))
    prefill = formula([Batch(1, [(64, 0)], 0, 0, 0, 0)]) + formula([Batch(2, [(36, 64)], 0, 0, 0, 0)])
    decode = sum(formula([Batch(3, [], 1, kv, kv, kv)]) for kv in (100, 101, 102, 103))
    assert results.column("first")[0] == pytest.approx(1.0 + prefill, abs=1e-12)
    assert results.column("last")[0] == pytest.approx(1.0 + prefill + decode, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 80), st.integers(1, 30)), min_size=1, max_size=30),
    st.sampled_from(sorted(POLICIES)),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_no_request_and_no_token_is_lost(tmp_path_factory, lengths, routing, count, is_async, pp):
    folder = tmp_path_factory.getbasetemp()
    arrivals = [sum(gap for gap, _, _ in lengths[: i + 1]) for i in range(len(lengths))]
    requests = [Request(at, a, b) for at, (_, a, b) in zip(arrivals, lengths)]
    scheduler = Scheduler(max_num_seqs=6, max_num_batched_tokens=64, async_scheduling=is_async)
    results = serve(
        folder, requests, routing=routing, count=count, scheduler=scheduler, pp=pp, link=Link(10.0, 5.0), kv_blocks=40
    )
    assert results.count == len(requests)
    assert results.column("output").sum() == sum(b for _, _, b in lengths)
    arrival, queued, first, last = (results.column(name) for name in ("arrival", "queued", "first", "last"))
    assert (arrival <= queued).all() and (queued < first).all() and (first <= last).all()


def test_equal_seeds_give_equal_bytes(tmp_path):
    written = []
    for run in range(2):
        rows = tmp_path / f"{run}.csv"
        serve(tmp_path, poisson(40.0, 200, 50, 20, burstiness=3.0, seed=7), rows, seed=3, routing="random", count=3)
        written.append(rows.read_bytes())
    assert written[0] == written[1] and written[0].count(b"\n") == 201


def test_async_scheduling_lets_an_arrival_wait_one_step_more(tmp_path):
    """The second one arrives while the first decodes alone, steps of one length."""
    requests = [Request(0.0, 16, 60), Request(0.0215, 16, 2)]
    waits = []
    for is_async in (False, True):
        scheduler = Scheduler(max_num_seqs=8, max_num_batched_tokens=64, async_scheduling=is_async)
        waits.append(serve(tmp_path, requests, scheduler=scheduler).metrics["ttft_from_queue"][1])
    step = StepTime(TABLES, SHAPE, instance(tmp_path))([Batch(1, [], 1, 30, 30, 30)])
    assert waits[1] - waits[0] == pytest.approx(step, rel=0.02)


def test_decode_instances_get_the_prompts_kv_over_the_link(tmp_path):
    """A slower link moves the first token by what its transfer takes longer."""
    firsts = []
    for gb_per_s in (1e-3, 2e-3):
        parts = instance(tmp_path, role="prefill"), instance(tmp_path, role="decode")
        results = simulate(Cluster(parts, transfer=Link(gb_per_s)), [Request(0.0, 50, 4)], tables=same_tables)
        firsts.append(results.column("first")[0])
        assert results.column("output").tolist() == [4]
    volume = 50 * SHAPE.kv_bytes_per_token
    assert firsts[0] - firsts[1] == pytest.approx(volume / 1e6 - volume / 2e6)


def test_a_hand_over_holds_up_the_step_of_either_side(tmp_path):
    """The first request waits on both sides for its own KV, and while it decodes, once for that of the second."""
    requests = [Request(0.0, 50, 200), Request(0.1, 50, 2)]
    found = []
    for seconds in (0.0, 0.05):
        parts = [instance(tmp_path, role=role, handover_s=seconds) for role in ("prefill", "decode")]
        found.append(simulate(Cluster(tuple(parts), transfer=Link(10.0)), requests, tables=same_tables))
    first, last = ([results.column(name)[0] for results in found] for name in ("first", "last"))
    assert first[1] - first[0] == pytest.approx(0.1) and last[1] - last[0] == pytest.approx(0.15, abs=1e-4)


def test_together_nothing_is_handed_over(tmp_path):
    plain, given = (serve(tmp_path, [Request(0.0, 50, 4)], handover_s=seconds) for seconds in (0.0, 0.05))
    assert plain.column("last")[0] == given.column("last")[0]


def test_a_sessions_turn_waits_for_the_one_before_and_its_tool(tmp_path):
    results = serve(tmp_path, sessions(50.0, 6, 4, 30, 10, 8, tool_seconds=0.5, seed=1), kv_blocks=400)
    requests = list(sessions(50.0, 6, 4, 30, 10, 8, tool_seconds=0.5, seed=1))
    ends = {}
    for i, request in enumerate(requests):
        if request.session in ends:
            assert results.column("arrival")[i] == pytest.approx(ends[request.session] + request.delay)
        ends[request.session] = results.column("last")[i]
    assert len(requests) > 10


def test_calibrations_factors_act_on_their_own_steps(tmp_path):
    plain = StepTime(tables(), SHAPE, instance(tmp_path))
    fixed = StepTime(tables(Correction(prefill=1.5, decode=2.0, gap_us=100.0)), SHAPE, instance(tmp_path))
    chunk, decode = Batch(1, [(32, 0)], 2, 20, 10, 10), Batch(1, [], 2, 20, 10, 10)
    assert fixed([chunk]) == pytest.approx(1.5 * plain([chunk]) + 1e-4)
    assert fixed([decode]) == pytest.approx(2.0 * plain([decode]) + 1e-4)


def test_energy_is_time_in_a_state_times_its_watts(tmp_path):
    results = serve(tmp_path, [Request(2.0, 30, 9)], power=Power(idle=100.0, decode=200.0, prefill=300.0))
    (engine,) = results.engines
    seconds = engine["seconds"]
    assert seconds["idle"] == pytest.approx(2.0) and sum(seconds.values()) == pytest.approx(results.seconds)
    expected = 100 * seconds["idle"] + 200 * seconds["decode"] + 300 * seconds["prefill"]
    assert results.summary()["joules"] == pytest.approx(expected)


def test_a_load_beyond_what_is_served_is_flagged_and_one_below_is_not(tmp_path):
    busy = serve(tmp_path, poisson(400.0, 400, 60, 40, seed=1), kv_blocks=400)
    calm = serve(tmp_path, poisson(2.0, 400, 60, 40, seed=1), kv_blocks=400)
    assert busy.is_saturated and not calm.is_saturated


def test_steps_outside_the_tables_are_told(tmp_path):
    scheduler = Scheduler(max_num_seqs=8, max_num_batched_tokens=4096)
    results = serve(tmp_path, [Request(0.0, 3000, 3)], scheduler=scheduler, kv_blocks=400)
    assert any("extrapolated" in note for note in results.notes)


def test_a_step_that_leaves_the_tables_twice_counts_once(tmp_path):
    """Both ranks' attention and the dense kernels are looked up beyond 1024 tokens."""
    formula = StepTime(TABLES, SHAPE, instance(tmp_path, dp=2, link=Link(10.0)))
    far, near = Batch(1, [(3000, 0)], 0, 0, 0, 0), Batch(2, [(30, 0)], 0, 0, 0, 0)
    formula([far, far])
    formula([near, near])
    assert (formula.steps, formula.outside) == (2, 1)


def test_a_request_that_can_never_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"request 0 needs 188 KV blocks .* has 64"):
        serve(tmp_path, [Request(0.0, 2000, 1000)])


def test_weights_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the model does not fit"):
        serve(tmp_path, [], kv_blocks=None, memory_gb=1e-4)


def test_a_rank_without_requests_does_not_shorten_the_step_of_its_group(tmp_path):
    config = CONFIG | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = instance(tmp_path, dp=2, link=Link(10.0, 5.0))
    found = simulate(Cluster((given,)), [Request(0.0, 20, 2)], tables=lambda _, shape: tables(with_experts=True))
    formula = StepTime(tables(with_experts=True), ModelShape.from_config(config), given)
    assert found.metrics["tpot"][0] == pytest.approx(formula([Batch(1, [], 1, 20, 20, 20), None]))
    assert formula.links(1) > 0 and formula.experts(1) > 0
