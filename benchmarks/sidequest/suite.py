"""The SideQuest benchmark: its parts, and how much of each is measured."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_infeco.sidequest import SideQuestConfig, ToolFormat
from hf_infeco.training.sidequest import RecipeConfig
from hf_infeco.training.sidequest.evaluate import Agent, session_settings
from hf_infeco.training.sidequest.recipe import load_agent, with_side

from ..measuring import MODELS
from ..real.fetch import fetch
from ..suite import Run, Suite
from .policies import measure_baselines, measure_policies
from .report import TABLES

ADAPTERS = (MODELS / "agent", MODELS / "sidequest")


@dataclass(frozen=True)
class Extent:
    """How many tasks."""

    policies: int = 24
    longer: int = 8
    baselines: int = 8


def find_model(name: str | None) -> Path | None:
    """A folder with another model; None is the bundled agent."""
    if name is None:
        if missing := [str(folder) for folder in ADAPTERS if not (folder / "adapter_config.json").is_file()]:
            raise ValueError(
                f"There is no adapter in {' and '.join(missing)}: run from a clone, train them as docs/sidequest.md "
                "says, or name the folder of a chat model with --model."
            )
        return None
    if not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"There is no model in {name}: name the folder of a chat model with --model, or leave it out."
        )
    return Path(name)


def load(run: Run) -> Agent:
    """SmolLM2-135M-Instruct with the bundled adapters; another model as it is."""
    if run.model is not None:
        model = AutoModelForCausalLM.from_pretrained(run.model, dtype="auto")
        settings = SideQuestConfig(max_new_tokens=16, max_side_tokens=16)
        return Agent(model.eval().to(run.device), AutoTokenizer.from_pretrained(run.model), ToolFormat(), settings)
    folder = fetch("smollm2")
    config = RecipeConfig(agent_adapter=str(ADAPTERS[0]), max_new_tokens=256)
    agent, tokenizer = load_agent(str(folder), config)
    return Agent(with_side(agent, ADAPTERS[1]), tokenizer, ToolFormat(), session_settings(config))


SUITE = Suite(
    name="sidequest",
    title="SideQuest",
    parts={
        "policies": lambda run, extent: measure_policies(run, extent.policies, "policies"),
        "longer": lambda run, extent: measure_policies(run, extent.longer, "longer"),
        "baselines": lambda run, extent: measure_baselines(run, extent.baselines),
    },
    full=Extent(),
    quick=Extent(policies=1, longer=1, baselines=1),
    tables=TABLES,
    find_model=find_model,
    load=load,
    uses_gpu=True,
)
