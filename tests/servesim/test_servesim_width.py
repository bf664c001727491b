"""width(t): what a switch costs, that it loses nothing, and that the engine's own policies decide."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_infeco import scheduling
from hf_infeco.servesim import Cluster, Link, Request, simulate
from hf_infeco.servesim.generators import poisson
from hf_infeco.servesim.settings import Switching

from .profiles import instance, same_tables


def serve(folder, requests, link=None, count=1, pp=1, **how):
    given = Switching(**{"widths": (1, 2, 4), "policy": "hard", "settings": {"dwell": 0.1}, **how})
    each = instance(folder, count=count, dp=4, pp=pp, link=link or Link(10.0), switching=given, kv_blocks=30)
    cluster = Cluster((each,), routing="round_robin")
    return simulate(cluster, requests, tables=same_tables)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(scheduling.POLICIES)), st.integers(0, 1000), st.booleans(), st.floats(1.0, 60.0))
def test_no_request_and_no_token_is_lost_over_switches(tmp_path_factory, policy, seed, moves, rate):
    requests = list(poisson(rate, 40, 60, 20, burstiness=3.0, seed=seed))
    assert all(request.input_tokens + request.output_tokens <= 4 * 30 * 16 for request in requests)
    results = serve(tmp_path_factory.getbasetemp(), requests, policy=policy, moves=moves)
    assert results.count == 40 and results.column("output").sum() == sum(r.output_tokens for r in requests)
    assert (results.column("first") <= results.column("last")).all()


def test_a_request_that_fits_only_wide_makes_the_devices_wide(tmp_path):
    results = serve(tmp_path, [Request(0.0, 40, 30), Request(0.1, 700, 10)])
    assert results.switches and results.switches[0][1] == 2
    assert "fits at width 2 only" in results.switches[0][2]


def test_a_switch_and_its_first_step_take_their_time(tmp_path):
    requests, urgent = [Request(0.0, 700, 10)], {"dwell": 100.0}  # no switch for the sake of the load
    plain = serve(tmp_path, requests, settings=urgent)
    slow = serve(tmp_path, requests, settings=urgent, switch_s=0.5, first_step_s=0.25)
    assert [width for _, width, _ in slow.switches] == [2]
    assert slow.metrics["latency"][0] - plain.metrics["latency"][0] == pytest.approx(0.75, abs=1e-9)


def test_kv_that_is_moved_takes_the_link_and_kv_that_is_not_is_computed_again(tmp_path):
    """The first request decodes when a second one, which fits only wide, makes the devices switch."""
    requests = [Request(0.0, 300, 150), Request(0.06, 700, 2)]
    last = {}
    for name, how in {"fast": {}, "slow": {"link": Link(1e-4)}, "anew": {"moves": False}}.items():
        results = serve(tmp_path, requests, **how)
        assert results.column("output").tolist() == [150, 2]
        last[name] = results.metrics["latency"][0]
    assert last["fast"] < last["slow"] and last["fast"] < last["anew"]


def test_each_of_several_equal_instances_switches_by_itself(tmp_path):
    """Two requests that fit only wide, one for each of two instances, take as long as one on one."""
    alone = serve(tmp_path, [Request(0.0, 700, 10)])
    two = serve(tmp_path, [Request(0.0, 700, 10), Request(0.0, 700, 10)], count=2)
    assert [each["devices"] for each in two.engines] == [4, 4] and len(two.switches) == 2 * len(alone.switches)
    assert two.metrics["latency"].tolist() == [alone.metrics["latency"][0]] * 2


def test_stages_that_switch_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"role both, and pp=1 \(it is both and pp=2\)"):
        serve(tmp_path, [Request(0.0, 20, 10)], pp=2)


def test_what_no_width_holds_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the widest group holds 1920"):
        serve(tmp_path, [Request(0.0, 2000, 10)])


def test_widths_that_do_not_divide_the_devices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="widths that divide 4 devices"):
        serve(tmp_path, [Request(0.0, 20, 10)], widths=(1, 3))
