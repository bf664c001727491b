"""Policies on random states: what holds of every decision, and what tells the policies apart."""

import random
import subprocess
import sys

import pytest

from hf_infeco.scheduling import POLICIES, Policy, Request, Snapshot, least_loaded, make_policy, narrowest_fit

BUDGETS = {1: 100, 2: 200, 4: 400}
SHORT, LONG = Request(20, 20), Request(150, 20)


def random_state(rng: random.Random, time: float = 0.0) -> Snapshot:
    def requests(most: int) -> list[Request]:
        return [
            Request(rng.choice([5, 50, 150, 500]), rng.choice([1, 20]), rng.choice([0, 0, 0, 1]), rng.random() < 0.3)
            for _ in range(rng.randint(0, most))
        ]

    return Snapshot(time, rng.choice(list(BUDGETS)), BUDGETS, requests(8), requests(8))


@pytest.mark.parametrize("name", POLICIES)
def test_a_decision_names_a_width_that_exists_and_holds_what_runs(name):
    for seed in range(300):
        state = random_state(random.Random(seed))
        policy = make_policy(name, dwell=0.0, patience=0.0)
        decision = policy.decide(state)
        assert decision.width in BUDGETS and decision.target in BUDGETS, seed
        assert decision.width in (state.width, decision.target), seed
        fits = [narrowest_fit(each, BUDGETS) for each in [*state.running, *state.waiting]]
        if decision.width != state.width:
            assert all(width is None or width <= decision.width for width in fits), seed
        assert decision.admits or decision.width != decision.target, seed


@pytest.mark.parametrize("name", POLICIES)
def test_a_steady_state_settles_on_one_width_and_stays(name):
    """Requests that finish one after another, none arriving: each policy comes to rest within its times."""
    for seed in range(50):
        state = random_state(random.Random(seed))._replace(running=())
        policy = make_policy(name)
        widths = []
        for step in range(40):
            state = state._replace(time=step * 0.5, width=policy.decide(state).width)
            widths.append(state.width)
        assert len(set(widths[10:])) == 1, (seed, widths)


def test_a_load_between_calm_and_crowded_changes_nothing():
    for width in BUDGETS:
        groups = 4 // width
        state = Snapshot(0.0, width, BUDGETS, waiting=[SHORT] * (2 * groups))
        assert make_policy("hard", dwell=0.0).decide(state).width == width


def test_many_requests_ask_for_narrow_groups_and_few_for_wide_ones():
    policy = make_policy("hard", dwell=0.0)
    assert policy.decide(Snapshot(0.0, 4, BUDGETS, waiting=[SHORT] * 40)).width == 1
    assert policy.decide(Snapshot(1.0, 1, BUDGETS, waiting=[SHORT])).width == 4
    assert policy.decide(Snapshot(2.0, 4, BUDGETS, waiting=[SHORT] * 6)).width == 2


def test_a_load_has_to_last_before_it_counts():
    policy = make_policy("auto", dwell=1.0)
    crowd = Snapshot(0.0, 4, BUDGETS, waiting=[SHORT] * 40)
    assert policy.decide(crowd).width == 4
    assert policy.decide(crowd._replace(time=0.9)).width == 4
    assert policy.decide(crowd._replace(time=1.0)).width == 1


@pytest.mark.parametrize("name", ["hard", "auto"])
def test_a_request_that_fits_only_merged_is_not_kept_waiting(name):
    decision = make_policy(name).decide(Snapshot(0.0, 1, BUDGETS, waiting=[LONG], running=[SHORT]))
    assert decision.width == 2 and "fits" in decision.reason


@pytest.mark.parametrize("name", ["hard", "auto"])
def test_priority_asks_for_the_widest_at_once(name):
    urgent = SHORT._replace(priority=1)
    assert make_policy(name).decide(Snapshot(0.0, 1, BUDGETS, waiting=[urgent] + [SHORT] * 40)).width == 4


def test_a_request_that_fits_nowhere_moves_nothing():
    state = Snapshot(0.0, 2, BUDGETS, waiting=[Request(5000)])
    assert narrowest_fit(state.waiting[0], BUDGETS) is None
    assert make_policy("hard", dwell=0.0, calm=0.1).decide(state).width == 2


def test_narrow_groups_wait_for_a_request_that_runs_and_would_not_fit():
    state = Snapshot(0.0, 2, BUDGETS, waiting=[SHORT] * 40, running=[LONG])
    assert make_policy("hard", dwell=0.0).decide(state).width == 2


def test_sequential_waits_for_what_runs_and_admits_nothing_meanwhile():
    policy, busy = make_policy("sequential"), Snapshot(0.0, 1, BUDGETS, waiting=[LONG], running=[SHORT])
    decision = policy.decide(busy)
    assert (decision.width, decision.target, decision.admits) == (1, 2, False)
    assert policy.decide(busy._replace(running=(), time=3.0)).width == 2


def test_soft_waits_for_prompts_but_not_for_ever():
    policy = make_policy("soft", dwell=0.0, patience=5.0)
    busy = Snapshot(0.0, 1, BUDGETS, waiting=[LONG], running=[SHORT._replace(is_prefilling=True)])
    assert not policy.decide(busy).admits
    assert policy.decide(busy._replace(time=1.0, running=[SHORT])).width == 2
    policy = make_policy("soft", dwell=0.0, patience=5.0)
    policy.decide(busy)
    assert policy.decide(busy._replace(time=5.0)).width == 2


def test_the_group_with_the_fewest_tokens_is_taken():
    assert least_loaded([3, 1, 1]) == 1
    assert least_loaded([3, 1, 1], alive=[True, False, True]) == 2
    with pytest.raises(ValueError, match="None of 2 groups"):
        least_loaded([1, 2], alive=[False, False])


@pytest.mark.parametrize("settings", [{"calm": 5.0}, {"calm": 0.0}, {"dwell": -1.0}, {"patience": -1.0}])
def test_settings_that_contradict_are_refused(settings):
    with pytest.raises(ValueError, match="must"):
        Policy(**settings)


def test_an_unknown_policy_or_width_is_refused():
    with pytest.raises(ValueError, match="unknown"):
        make_policy("eager")
    with pytest.raises(ValueError, match="no budget"):
        make_policy("auto").decide(Snapshot(0.0, 3, BUDGETS))


def test_scheduling_needs_no_torch():
    code = "import sys, hf_infeco.scheduling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
