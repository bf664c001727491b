"""What is written beside trained models."""

import json

import torch
import transformers

from hf_infeco.training.testbed.facts import call_base, write_training


def test_training_json_holds_the_facts_and_what_they_depend_on(tmp_path):
    facts = write_training(tmp_path, {"seed": 3, "loss": 0.5}, torch.device("cpu"))
    assert json.loads((tmp_path / "training.json").read_text()) == facts
    assert (facts["seed"], facts["loss"]) == (3, 0.5)
    assert (
        facts["transformers"] == transformers.__version__ and facts["torch"] == torch.__version__ and facts["device"]
    )


def test_an_adapter_calls_its_base_by_name_and_keeps_the_rest(tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_text('{"r": 8, "base_model_name_or_path": "/somewhere/on/this/machine"}')
    call_base(tmp_path, "somebody/chat")
    assert json.loads(path.read_text()) == {"r": 8, "base_model_name_or_path": "somebody/chat"}
