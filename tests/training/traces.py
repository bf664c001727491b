"""A trace with side threads, an agent and settings so small that the recipe takes seconds."""

import torch
from peft import LoraConfig, get_peft_model

from hf_infeco.sidequest import ToolFormat
from hf_infeco.training.sidequest import RecipeConfig
from hf_infeco.training.sidequest.samples import SideSample, Trace

from ..sidequest.agents import model

TRIGGER = "tidy"
FORMAT = ToolFormat()


def talk(*turns):
    """A conversation in which each text but the last calls a tool."""
    messages = [{"role": "user", "content": "Go"}]
    for number, text in enumerate(turns):
        call = '{"tool": "find", "query": "x"}' if number < len(turns) - 1 else ""
        messages.append({"role": "assistant", "content": text + call})
        if call:
            messages.append({"role": "tool", "content": f"[{number}]\nfar {number}"})
    return messages


TALK = talk("a ", "see [0] ", "b ", "[0] and [2] ", "so [1]")


def trace():
    """Cursor 0 is closed from turn 3 on, though turn 3 would use it: what is hidden is a matter of the mask alone."""
    samples = [SideSample(2, [0, 1], [1], "x"), SideSample(4, [1, 2, 3], [2, 3], "yy")]
    return Trace(TALK, [3, -1, -1, -1], samples)


LITTLE = RecipeConfig(traces=4, epochs=2, batch=2, learning_rate=0.02, target_modules=("q_proj", "v_proj"), rank=2)


def agent_model():
    agent = model().float()
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(agent, lora, adapter_name="agent")
