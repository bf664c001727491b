"""S2OConfig refuses what cannot work, by name, and survives a JSON round trip."""

import dataclasses
import json

import pytest

from hf_infeco import S2OConfig


@pytest.mark.parametrize("tau", [-1e-3, 1.0, 2.0, float("nan")])
def test_tau_is_a_share_of_mass(tau):
    with pytest.raises(ValueError, match=r"S2OConfig\.tau=.*0 <= tau < 1.*Use 0 for exact"):
        S2OConfig(tau=tau)


@pytest.mark.parametrize("field", ["segment", "granule", "chunk", "patience"])
def test_sizes_are_positive(field):
    with pytest.raises(ValueError, match=rf"S2OConfig\.{field}=0 is below its least value 1"):
        S2OConfig(**{field: 0})


@pytest.mark.parametrize("field", ["sink", "local", "crossover"])
def test_key_counts_are_not_negative(field):
    with pytest.raises(ValueError, match=rf"S2OConfig\.{field}=-1 is below its least value 0"):
        S2OConfig(**{field: -1})
    assert getattr(S2OConfig(**{field: 0}), field) == 0


def test_a_segment_holds_whole_granules():
    with pytest.raises(ValueError, match=r"segment=100 is no multiple of granule=8.*segment=104 or 96"):
        S2OConfig(segment=100)


def test_a_chunk_holds_whole_granules():
    with pytest.raises(ValueError, match=r"chunk=4 is no multiple of granule=8.*Use chunk=8\."):
        S2OConfig(chunk=4)


def test_text_for_a_number_is_refused():
    with pytest.raises(ValueError, match="segment"):
        S2OConfig(segment="512")


def test_settings_are_keywords_and_frozen():
    with pytest.raises(TypeError):
        S2OConfig(0.01)
    with pytest.raises(dataclasses.FrozenInstanceError):
        S2OConfig().tau = 0.5


def test_json_round_trip_keeps_every_field():
    config = S2OConfig(tau=0.01, segment=256, granule=16, chunk=64, patience=3, sink=5, local=7, crossover=11)
    assert S2OConfig.from_dict(json.loads(config.to_json_string())) == config


def test_every_field_says_what_it_is():
    assert all(field.metadata["help"] for field in dataclasses.fields(S2OConfig))
