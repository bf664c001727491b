"""A model at every width: the same logits from the same tensors, and nothing left of it at width 1."""

import pytest

from hf_infeco.flying.plans import make_plan

from ..contract.families import build as contract_build
from . import processes, workers
from .models import NAMES

CASES = [*NAMES, "uneven"]


@pytest.fixture(scope="module")
def session() -> list[dict]:
    return processes.run(4, workers.switcher_session)


@pytest.fixture(params=CASES)
def family(request, session) -> dict:
    return session[0]["families"][request.param]


def test_logits_at_every_width_are_those_of_width_1(family):
    assert family["errors"] and max(family["errors"].values()) < 1e-4


def test_the_likelihood_of_a_text_is_the_same_at_every_width(family):
    assert len({round(value, 4) for value in family["nll"].values()}) == 1


def test_weights_are_views_and_stay_where_they_are(family):
    assert family["unmoved"] and family["copied"] == 0


def test_back_at_width_1_everything_is_bit_exact(family):
    assert family["back"] and family["forwards"]


@pytest.mark.parametrize("name", CASES)
def test_a_flip_takes_less_than_a_millisecond(session, name):
    assert min(found["families"][name]["flip"] for found in session) < 1e-3


def test_widths_2_and_4_are_reached_where_heads_allow(session):
    assert all(session[0]["families"][name]["widths"] == [1, 2, 4] for name in NAMES)


def test_heads_that_do_not_divide_are_split_unevenly(session):
    assert session[0]["families"]["uneven"]["heads"] == [2, 1]


def test_plans_that_gather_keep_all_heads_everywhere(session):
    assert session[0]["families"]["phi3"]["heads"] == [4] * 4


@pytest.mark.parametrize("settings", ["exact", "s2o", "innerq"])
def test_a_patched_model_switches_by_its_own_heads(session, settings):
    for found in session:
        first, *others = found["patched"][settings]
        assert all(text == first for text in others)


def test_merged_processes_sample_alike_and_apart_again_afterwards(session):
    merged, alone = zip(*(found["sampling"] for found in session), strict=True)
    assert merged[0] == merged[1] and merged[2] == merged[3]
    assert alone[0] != alone[1]


def test_weights_that_were_replaced_are_noticed(session):
    message, width = session[0]["replaced"]
    assert "replaced after its views were built" in message and width == 1


def test_processes_that_ask_for_different_widths_are_told(session):
    for found in session:
        message, width = found["disagreement"]
        assert "ask for widths [4, 2, 2, 2]" in message and width == 1


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("too wide", "max_width=4 exceeds the 2 KV heads of LlamaForCausalLM"),
        ("no plan", "no tensor parallel plan"),
        ("latents", "caches latents"),
        ("processes", "must divide the 4 processes"),
        ("width", "use one of [1, 2]"),
    ],
)
def test_what_cannot_be_split_is_refused_with_a_sentence(session, case, words):
    assert words in session[0]["refusals"][case]


def test_a_model_without_a_plan_can_be_served_alone():
    plan = make_plan(contract_build("gpt2"), 1)
    assert not plan.parts and plan.heads(1) == [plan.num_key_value_heads]
