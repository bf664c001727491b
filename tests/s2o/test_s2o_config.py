"""S2OConfig refuses what cannot work, by name, and survives a JSON round trip."""

import dataclasses
import json

import pytest

from hf_infeco import S2OConfig


@pytest.mark.parametrize("tau", [-1e-3, 1.0, 2.0, float("nan")])
def test_tau_is_a_share_of_mass(tau):
    with pytest.raises(ValueError, match=r"S2OConfig\.tau=.*0 <= tau < 1.*Use 0 for exact"):
        S2OConfig(tau=tau)


@pytest.mark.parametrize("target_mass", [0.0, 1.0, -0.5, float("nan")])
def test_target_mass_is_a_share_of_mass(target_mass):
    with pytest.raises(ValueError, match=r"S2OConfig\.target_mass=.*0 < target_mass < 1.*tau=0 for all"):
        S2OConfig(target_mass=target_mass)


@pytest.mark.parametrize("granule", [0, 8, 24, 64])
def test_a_granule_is_one_that_every_kernel_takes(granule):
    with pytest.raises(ValueError, match=rf"S2OConfig\.granule={granule} is none of \(16, 32\).*Use granule=32"):
        S2OConfig(granule=granule)


@pytest.mark.parametrize(
    "segment, way_out",
    [(100, "segment=64 or 128"), (96, "segment=64 or 128"), (16, "segment=32 or 64"), (-512, "segment=32 or 64")],
)
def test_a_segment_halves_down_to_granules(segment, way_out):
    with pytest.raises(ValueError, match=rf"segment={segment} is not granule=32 times a power of two.*{way_out}"):
        S2OConfig(segment=segment)


def test_the_crossover_is_a_number_or_measured():
    assert S2OConfig().crossover == "auto" and S2OConfig(crossover=0).crossover == 0
    with pytest.raises(ValueError, match=r"crossover='never' is neither a number of keys nor \"auto\""):
        S2OConfig(crossover="never")
    with pytest.raises(ValueError, match=r"crossover=-1 is below 0"):
        S2OConfig(crossover=-1)


def test_text_for_a_number_is_refused():
    for field in ("segment", "target_mass", "tau"):
        with pytest.raises(ValueError, match=rf"S2OConfig\.{field}='512' is a str"):
            S2OConfig(**{field: "512"})
    with pytest.raises(ValueError, match=r"S2OConfig\.crossover=1.5 is a float"):
        S2OConfig(crossover=1.5)


def test_settings_are_keywords_and_frozen():
    with pytest.raises(TypeError):
        S2OConfig(0.01)
    with pytest.raises(dataclasses.FrozenInstanceError):
        S2OConfig().tau = 0.5


def test_json_round_trip_keeps_every_field():
    config = S2OConfig(tau=0.01, target_mass=0.9, segment=256, granule=16, compensate=False, crossover=11)
    assert S2OConfig.from_dict(json.loads(config.to_json_string())) == config


def test_every_field_says_what_it_is():
    assert all(field.metadata["help"] for field in dataclasses.fields(S2OConfig))
