"""
The stages, one after another: rollouts -> labels -> training -> evaluation. Each leaves its result in the folder of
the run and is skipped when that is there, so a run that was stopped at any point goes on with the same result.

    rollouts.jsonl    the correct traces of each group of tasks
    traces/           what is learnt from, as a `datasets` folder: messages, closed cursors, side threads and targets
    state/            checkpoints of the training, until it is done
    adapter/          the result: adapter, infeco_config.json, evaluation.json, evaluation.svg
"""

import json
import random
import shutil
from pathlib import Path

import transformers
from accelerate import PartialState
from datasets import Dataset, load_from_disk
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_infeco.sidequest import ToolFormat

from ..testbed.facts import call_base
from .card import card
from .config import RecipeConfig
from .evaluate import evaluate, plot
from .rationale import with_reasons
from .rollouts import collect
from .samples import Trace, label
from .tasks import named
from .train import SIDE, add_side_adapter, train

logger = logging.get_logger(__name__)


def run_recipe(model: str, config: RecipeConfig, folder: Path) -> Path:
    """
    All stages, or those that are left.

    Args:
        model: folder or Hub name of the base model.
        config: settings; those of a run that goes on must be the same.
        folder: of the run.

    Returns:
        The folder of the adapter.

    Raises:
        ValueError: the folder holds a run with other settings, or a stage cannot be done with these.
    """
    _same_settings(config, folder)
    tool_format: ToolFormat = named(config.tool_format, "tool_format")()
    agent, tokenizer = load_agent(model, config)
    processes = PartialState()
    with processes.main_process_first():  # the others find what it leaves
        traces = _traces(agent, tokenizer, tool_format, config, folder)
    out = folder / "adapter"
    if not out.exists():
        _train(agent, tokenizer, tool_format, config, traces, folder)
    with processes.main_process_first():
        if config.evaluation_tasks and not (out / "evaluation.json").exists():
            _evaluate(model, tool_format, config, folder)
    return out


def load_agent(model: str, config: RecipeConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The agent before training: the base model in bfloat16, with its adapter if it has one."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16")
    if config.agent_adapter:
        base = PeftModel.from_pretrained(base, config.agent_adapter, adapter_name="agent")
    return base.eval().to(PartialState().device), AutoTokenizer.from_pretrained(model)


def with_side(agent: PreTrainedModel, folder: Path) -> PeftModel:
    """The agent with the trained adapter beside its own."""
    if isinstance(agent, PeftModel):
        agent.load_adapter(str(folder), adapter_name=SIDE)
        return agent.eval()
    return PeftModel.from_pretrained(agent, str(folder), adapter_name=SIDE).eval()


def base_name(agent: PreTrainedModel) -> str:
    """How others call the base model: as the agent's adapter does; without one by its name, or that of its folder."""
    if isinstance(agent, PeftModel):
        return str(agent.peft_config["agent"].base_model_name_or_path)
    return Path(agent.name_or_path).name if Path(agent.name_or_path).is_dir() else agent.name_or_path


def _same_settings(config: RecipeConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        before = RecipeConfig.from_pretrained(folder)
    except FileNotFoundError:
        config.save_pretrained(folder)
        return
    if before != config:
        differing = [name for name, value in before.to_dict().items() if value != config.to_dict()[name]]
        raise ValueError(
            f"{folder} holds a run with another {', '.join(differing)}: take the settings in its infeco_config.json "
            "to go on, or another folder."
        )


def _traces(agent, tokenizer, tool_format, config: RecipeConfig, folder: Path) -> list[Trace]:
    path = folder / "traces"
    if not path.exists():
        wholes = collect(agent, tokenizer, tool_format, config, folder / "rollouts.jsonl")
        draw = random.Random(config.seed)
        traces = [label(whole, tool_format, config.interval, draw) for whole in wholes]
        if config.rationale:
            traces = with_reasons(traces, config.rationale)
        part = folder / "traces.part"
        Dataset.from_list([trace.to_row() for trace in traces]).save_to_disk(part)
        part.rename(path)
    return [Trace.from_row(row) for row in load_from_disk(path)]


def _train(agent, tokenizer, tool_format, config: RecipeConfig, traces: list[Trace], folder: Path) -> None:
    transformers.set_seed(config.seed)  # however much of it the stages before have used
    name = base_name(agent)
    model = add_side_adapter(agent, config)
    state = folder / "state"
    trainer = train(model, tokenizer, traces, tool_format, config, state)
    if not trainer.is_world_process_zero():
        return
    part = folder / "adapter.part"
    model.to(agent.dtype).save_pretrained(part, selected_adapters=[SIDE])
    call_base(part / SIDE, name)
    config.save_pretrained(part / SIDE)
    (part / SIDE / "training.json").write_text(json.dumps(trainer.state.log_history, indent=2) + "\n")
    (part / SIDE).rename(folder / "adapter")
    shutil.rmtree(part)
    shutil.rmtree(state)


def _evaluate(model: str, tool_format: ToolFormat, config: RecipeConfig, folder: Path) -> None:
    out = folder / "adapter"
    agent, tokenizer = load_agent(model, config)
    name = base_name(agent)
    report = evaluate(with_side(agent, out), tokenizer, tool_format, config, folder / "evaluation")
    plot(report, out / "evaluation.svg")
    (out / "README.md").write_text(card(name, config, report))
    (out / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
