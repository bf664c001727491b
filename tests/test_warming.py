"""`warm_up` does ahead what the first long prompt would wait for, and leaves no trace in the model."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import hf_infeco
from hf_infeco import S2OConfig
from hf_infeco.s2o import crossover

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=4096,
        eos_token_id=7,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(crossover.VARIABLE, str(tmp_path))
    monkeypatch.setattr(crossover, "_known", {})
    return tmp_path


def prompt(length):
    return torch.randint(8, 101, (1, length), generator=torch.Generator().manual_seed(1))


def test_a_warm_model_has_nothing_left_to_measure(model, folder, monkeypatch):
    hf_infeco.warm_up(hf_infeco.patch(model))
    assert len(json.loads((folder / "crossover.json").read_text())) == 1
    monkeypatch.setattr(crossover, "_measure", None)  # would fail if called
    model(prompt(1500))


def test_warming_up_leaves_the_model_as_it_was(model, folder):
    hf_infeco.patch(model, s2o=S2OConfig(tau=0.0))
    ids = prompt(300)
    model(ids)
    before, counted = model.generate(ids, max_new_tokens=9), hf_infeco.report(model).s2o
    model.train()
    hf_infeco.warm_up(model, prompt(700))
    assert model.training
    model.eval()
    assert hf_infeco.report(model).s2o == counted
    assert torch.equal(model.generate(ids, max_new_tokens=9), before)


def test_the_prompt_is_long_enough_for_the_crossover_and_fits_the_model(model, folder, monkeypatch):
    given = []
    monkeypatch.setattr(model, "generate", lambda ids, **settings: given.append(ids))
    for settings in (dict(s2o=S2OConfig(crossover=3000)), dict(s2o=S2OConfig(crossover=9000)), dict(s2o=False)):
        hf_infeco.warm_up(hf_infeco.patch(model, **settings))
    assert [ids.shape[1] for ids in given] == [3000, 4096 - 8, 2048]
    assert all(not torch.isin(ids, torch.tensor([0, 7])).any() for ids in given)


def test_an_unpatched_model_is_refused(model):
    with pytest.raises(ValueError, match=r"This LlamaForCausalLM is not patched.*hf_infeco.patch"):
        hf_infeco.warm_up(model)
