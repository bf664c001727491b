"""Continuous batching whose width changes: the texts of every request, and what happens when something breaks."""

import pytest
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from hf_infeco.flying import FlyingManager, ParallelSwitcher

from . import processes, serving
from .models import build

MODELS = ["llama", "uneven", "gemma3", "phi3"]


@pytest.fixture(scope="module")
def session() -> list[dict]:
    return processes.run(4, serving.serving_session)


@pytest.fixture(scope="module")
def trouble() -> dict:
    return processes.run(2, serving.trouble)[0]


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_those_of_each_request_by_itself_whatever_the_switches(session, name):
    """Random arrivals, cancels, priorities and switches: nothing lost, doubled or altered."""
    runs = session[0][name]["runs"]
    assert sum(run["switches"] for run in runs) > 0
    for run in runs:
        print(
            f"seed {run['seed']}: {run['requests']} requests, {run['switches']} switches, {run['cancelled']} cancels"
        )
        assert not run["wrong"], run


@pytest.mark.parametrize("name", MODELS)
def test_no_block_is_left_over(session, name):
    assert [found[name]["leaked"] for found in session] == [0] * 4


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_group_that_is_stopped_does_not_start_again(session, name):
    assert [found[name]["warnings"] for found in session] == [[]] * 4


def test_keys_and_values_were_moved_and_computed_again(session):
    switches = [switch for found in session for name in MODELS for switch in found[name]["switches"]]
    assert any(switch["bytes"] for switch in switches) and any(switch["recomputed"] for switch in switches)


@pytest.mark.parametrize(("case", "words"), [("patched", "is patched"), ("blocks", "num_blocks is not set")])
def test_what_cannot_be_served_is_refused_with_a_sentence(session, case, words):
    assert words in session[0]["refusals"][case]


def test_a_prompt_larger_than_every_pool_harms_nobody(trouble):
    assert "A request of 500 prompt and 8 new tokens does not fit" in trouble["too large"]
    assert trouble["beside"] == trouble["text"]


def test_a_request_that_fits_only_merged_waits_for_that_width(trouble):
    assert trouble["held"] == 1
    assert trouble["merged"] == trouble["long text"]


def test_a_switch_that_fails_in_one_process_is_taken_back_in_all(trouble):
    message, width = trouble["rolled back"]
    assert "was taken back" in message and width == 1
    assert trouble["width"] == 2  # at the second try
    assert trouble["after"] == [trouble["whole text"]] * 4


def test_a_request_with_priority_overtakes(trouble):
    assert trouble["order"] < 3


def test_a_width_without_room_for_what_runs_is_refused(trouble):
    assert "width 1 holds 128" in trouble["no room"]
    assert trouble["refused"] == {1: trouble["no room"]}


def test_a_loop_that_dies_fails_its_requests_and_serves_on_alone(trouble):
    assert "spoiled by a test" in trouble["failed"]
    assert trouble["again"] == trouble["text"]
    assert trouble["groups"] == [(0,), (1,)]
    assert trouble["merged again"] == trouble["text"]


def test_a_request_without_a_first_token_counts_as_prefilling(trouble):
    assert 1 <= trouble["parked"]["prefilling"] <= trouble["parked"]["running"] <= 2


def test_a_process_whose_groups_broke_tells_the_front(trouble):
    assert trouble["told"] and "cannot change any more" in trouble["broken"]


def test_what_is_held_for_a_merge_that_cannot_come_any_more_fails_with_a_sentence(trouble):
    is_the_held_one, error = trouble["given up"]
    assert is_the_held_one and "may have 158 tokens, and no group holds more than 128 any more" in error


def test_a_policy_that_cannot_switch_any_more_leaves_the_gate_open(trouble):
    assert trouble["is open"]


def test_every_group_of_the_engine_has_the_timeout_that_was_asked_for(trouble):
    assert trouble["limits"] == [processes.TIMEOUT] * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda model: FlyingManager(model, continuous_batching_config=ContinuousBatchingConfig(num_blocks=8)),
        lambda model: ParallelSwitcher(model, 1),
    ],
)
def test_without_processes_the_way_out_is_told(make):
    with pytest.raises(RuntimeError, match="init_process_group"):
        make(build("llama"))


def test_a_stopped_manager_takes_nothing(trouble):
    assert "stopping" in trouble["stopped"]


@pytest.mark.parametrize("width", [1, 2])
def test_when_a_process_dies_its_requests_fail_and_the_others_serve_on(width):
    (found, _) = processes.run(2, serving.death, width)
    assert found["errors"] and found["again"] == found["text"]
    assert found["took"] < processes.TIMEOUT
    assert "cannot change any more" in found["refused"]
    assert "holds 640 tokens at width 1" in found["too large"]  # it would be held for ever


def test_the_example_answers_and_switches():
    printed = processes.run(2, serving.example)[0]
    assert "2 of 2 prompts answered" in printed and "width 2: waited" in printed
