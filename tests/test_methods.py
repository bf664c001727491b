"""A third method, added from outside: what it takes, and that patch, report and unpatch know it like the other two."""

import copy
import pickle
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import hf_infeco
from hf_infeco import InfecoConfig, methods
from hf_infeco.config import METHODS, MethodConfig
from hf_infeco.edits import Edits
from hf_infeco.methods import Method, Outcome


def count_call(module, args, kwargs):
    module.calls_seen["calls"] += 1


@dataclass(frozen=True, kw_only=True)
class CountingConfig(MethodConfig):
    """Counts the calls of every `step`-th layer."""

    step: int = field(default=1, metadata={"help": "layers from one counted one to the next"})

    def validate(self):
        if self.step < 1:
            raise ValueError(f"CountingConfig.step={self.step} must be 1 or more layers.")


@dataclass(frozen=True)
class ConfigWithCounting(InfecoConfig):
    counting: Any = None


@dataclass(frozen=True)
class Calls:
    calls: int

    def to_dict(self):
        return {"calls": self.calls}

    def __str__(self):
        return f"{self.calls} calls"


class Counting(Method):
    name = "counting"

    def refuse(self, found, layer):
        return "it is the first layer" if layer.index == 0 else None

    def apply(self, model, settings, layers, edits):
        for index in layers[:: settings.step]:
            module = model.model.layers[index]
            edits.set_attribute(module, "calls_seen", Counter())
            edits.add_forward_pre_hook(module, count_call)

    def outcome(self, found, layer, settings):
        return Outcome("enabled", f"counted, step {settings.step}", "hook")

    def measured(self, found):
        return Calls(sum(getattr(layer, "calls_seen", Counter())["calls"] for layer in found.model.model.layers))


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(METHODS, "counting", CountingConfig)
    monkeypatch.setattr(methods, "_methods", dict(methods._methods))
    methods.register(Counting())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, head_dim=16
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def run(model):
    with torch.no_grad():
        return model(torch.arange(9)[None]).logits


def test_a_method_from_outside_works_beside_the_others(model):
    before = run(model)
    hf_infeco.patch(model, ConfigWithCounting(counting={"step": 1}), s2o=False)
    torch.testing.assert_close(run(model), before)
    report = hf_infeco.report(model)
    assert [(line.area, line.status, line.layers) for line in report.areas] == [
        ("s2o", "off", "0-2"),
        ("innerq", "enabled", "0-2"),
        ("counting", "enabled", "1-2"),
        ("counting", "unsupported", "0"),
    ]
    assert report.measured["counting"].calls == 2 and report.to_dict()["measured"]["counting"] == {"calls": 2}
    assert str(report).endswith("; 2 calls")
    hf_infeco.unpatch(model)
    assert torch.equal(run(model), before)
    assert not any("calls_seen" in vars(layer) or layer._forward_pre_hooks for layer in model.model.layers)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_undone_by_itself(model, copied):
    hf_infeco.patch(model, ConfigWithCounting(counting=True), s2o=False)
    other = copied(model)
    run(other), run(other)
    assert hf_infeco.report(other).measured["counting"].calls == 4
    assert hf_infeco.report(model).measured["counting"].calls == 0
    hf_infeco.unpatch(other)
    run(other), run(model)
    assert not any("calls_seen" in vars(layer) for layer in other.model.layers)
    assert hf_infeco.report(model).measured["counting"].calls == 2


def test_its_settings_are_checked_like_any(model):
    with pytest.raises(ValueError, match=r"CountingConfig.step=0 must be 1 or more"):
        hf_infeco.patch(model, ConfigWithCounting(counting={"step": 0}))
    with pytest.raises(ValueError, match=r"'counted'.*use \['counting', 'innerq', 's2o'\]"):
        hf_infeco.patch(model, ConfigWithCounting(), counted=True)


def test_a_failure_half_way_leaves_nothing(model, monkeypatch):
    def fails(self, model, settings, layers, edits):
        edits.set_attribute(model.model, "calls_seen", 1)
        raise RuntimeError("half way")

    monkeypatch.setattr(Counting, "apply", fails)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(RuntimeError, match="half way"):
        hf_infeco.patch(model, ConfigWithCounting(counting=True))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.config._attn_implementation == "sdpa"


def test_two_methods_of_one_name_are_refused(model):
    with pytest.raises(ValueError, match="'counting' is already registered by Counting"):
        methods.register(Counting())


# ---------------------------------------------------------------- edits


def test_parameters_and_forwards_come_back():
    layer = nn.Linear(3, 2)
    weight, edits = layer.weight, Edits()
    edits.set_attribute(layer, "weight", nn.Parameter(torch.zeros(2, 3)))
    edits.set_attribute(layer, "forward", torch.relu)
    assert torch.equal(layer(torch.ones(1)), torch.ones(1)) and not layer.weight.any()
    edits.undo()
    assert layer.weight is weight and "forward" not in vars(layer)
    edits.undo()
    assert layer.weight is weight


def test_what_somebody_else_has_set_since_stays():
    layer, edits = nn.Linear(3, 2), Edits()
    edits.set_attribute(layer, "forward", torch.relu)
    layer.forward = torch.sigmoid
    edits.undo()
    assert layer.forward is torch.sigmoid
