"""Configs refuse what makes no sense, survive JSON, and speak up about what they do not know."""

import json
import logging

import pytest

from hf_infeco import InfecoConfig, InnerQConfig, S2OConfig
from hf_infeco.config import FORMAT_VERSION, METHODS


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(key_bits=5), "key_bits=5.*2, 3, 4"),
        (dict(value_bits=16), "value_bits=16.*innerq=False"),
        (dict(sink=-1), "sink=-1.*0 or more"),
        (dict(recent="96"), "recent='96' is a str.*int"),
        (dict(sink=True), "sink=True is a bool"),
        (dict(normalize_keys=1), "normalize_keys=1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        InnerQConfig(**fields)


def test_presets_store_the_bits_they_promise():
    assert InnerQConfig().bits_per_number == 4.125
    assert InnerQConfig().bits_per_token(80, 80) == 96 * 4.5 + 80 * 3.5 + 16
    assert (InnerQConfig.balanced().bits_per_number, InnerQConfig.size().bits_per_number) == (3.625, 3.125)
    assert InnerQConfig.base().bits_per_number == 3.5
    assert InnerQConfig.small().bits_per_number == 3.0
    assert InnerQConfig.hybrid().bits_per_number == 3.25


@pytest.mark.parametrize(
    "config",
    [
        InfecoConfig(),
        InfecoConfig(s2o=None, innerq=InnerQConfig.hybrid()),
        InfecoConfig(s2o=S2OConfig(tau=0.01), innerq=False),
        S2OConfig(tau=0.5),
        InnerQConfig.small(),
    ],
)
def test_round_trips(config, tmp_path):
    assert type(config).from_dict(json.loads(config.to_json_string())) == config
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path) == config


def test_methods_can_be_given_in_short():
    config = InfecoConfig(s2o=False, innerq="small")
    assert config.s2o is None and config.innerq == InnerQConfig.small()
    assert InfecoConfig(s2o={"tau": 0.1}, innerq=True) == InfecoConfig(s2o=S2OConfig(tau=0.1), innerq=InnerQConfig())


def test_unknown_keys_are_dropped_with_a_warning(warnings):
    assert InnerQConfig.from_dict({"key_bits": 2, "colour": "red"}) == InnerQConfig(key_bits=2)
    assert "colour" in warnings.text and "InnerQConfig" in warnings.text


def test_a_config_of_a_newer_version_is_read_with_a_warning(warnings):
    newer = {**InfecoConfig().to_dict(), "format_version": FORMAT_VERSION + 1}
    assert InfecoConfig.from_dict(newer) == InfecoConfig()
    assert f"format version {FORMAT_VERSION + 1}" in warnings.text and "upgrade" in warnings.text


def test_a_folder_without_a_config_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"infeco_config\.json.*save_pretrained"):
        InfecoConfig.from_pretrained(tmp_path)


def test_two_methods_cannot_share_a_name():
    from hf_infeco.config import MethodConfig

    with pytest.raises(ValueError, match="already registered by InnerQConfig"):

        class Another(MethodConfig, method="innerq"):
            pass

    assert METHODS["innerq"] is InnerQConfig


def test_configs_are_immutable():
    with pytest.raises(AttributeError):
        InnerQConfig().key_bits = 2


def test_another_configs_file_is_refused(tmp_path):
    S2OConfig(tau=0.5).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="saved S2OConfig, not a InfecoConfig"):
        InfecoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("values", [[1], "tau", {"format_version": "2"}, {"format_version": None}])
def test_what_is_no_saved_config_is_refused(values):
    with pytest.raises(ValueError, match="InnerQConfig"):
        InnerQConfig.from_dict(values)
