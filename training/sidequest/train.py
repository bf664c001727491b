"""Stage 4: the side adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_infeco import CACHE_NAME
from hf_infeco.sidequest import SideQuestConfig, ToolFormat
from hf_infeco.sidequest.packed_attention import as_mask

from .config import RecipeConfig
from .packing import PackedTrace, pack
from .rollouts import main_adapters
from .samples import Trace

SIDE = "side"
SAVED_EVERY = 20  # steps
CHUNK = 256  # tokens read at a time: under a mask, one forward of all attends as much to what is behind as before


def add_side_adapter(model: PreTrainedModel, config: RecipeConfig) -> PeftModel:
    """The model with a new adapter `side`, on top of the agent's if it has one."""
    layers = model.config.get_text_config().num_hidden_layers
    if config.first_layer >= layers:
        raise ValueError(
            f"RecipeConfig.first_layer={config.first_layer} must be below {layers}, the number of the model's layers."
        )
    modules: Any = list(config.target_modules)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        layers_to_transform=list(range(config.first_layer, layers)) if config.first_layer else None,
        layers_pattern="layers" if config.first_layer else None,
        task_type="CAUSAL_LM",
    )
    if isinstance(model, PeftModel):
        model.add_adapter(SIDE, lora)
        return model
    return get_peft_model(model, lora, adapter_name=SIDE)


@contextmanager
def active(model: torch.nn.Module, adapters: tuple[str, ...]) -> Iterator[None]:
    """Within, these adapters are active, none for an empty tuple. Only `side` is ever trained."""
    _activate(model, adapters)
    yield
    _activate(model, (*(name for name in adapters if name != SIDE), SIDE))


def _activate(model: torch.nn.Module, adapters: tuple[str, ...]) -> None:
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter(list(adapters))
    for name, weight in model.named_parameters():
        weight.requires_grad_(f".{SIDE}." in name)


class PackedTraces(torch.utils.data.Dataset):
    """Traces, packed when they are asked for."""

    def __init__(self, traces: list[Trace], tokenizer: PreTrainedTokenizerBase, tool_format: ToolFormat) -> None:
        self.traces, self.tokenizer, self.tool_format = traces, tokenizer, tool_format
        self.trigger = SideQuestConfig().trigger

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, at: int) -> dict[str, PackedTrace]:
        return {"packed": pack(self.tokenizer, self.traces[at], self.trigger, self.tool_format)}


class SideTrainer(Trainer):
    """
    Cross-entropy on what side threads should say. If the adapter is active in the main thread too, also
    `distillation * KL(agent || adapted)`, the mean over what the main thread wrote, where the agent is the same
    weights with the adapter off.
    """

    def __init__(self, recipe: RecipeConfig, **settings: Any) -> None:
        super().__init__(**settings)
        self.recipe, self.agent = recipe, main_adapters(recipe)
        self.model_accepts_loss_kwargs = False  # the loss is a mean: it has to be divided by the traces of a step

    def compute_loss(self, model: Any, inputs: dict[str, PackedTrace], *args: Any, **kwargs: Any) -> torch.Tensor:
        packed = inputs["packed"]
        return self._adapted(model, packed) if self.recipe.adapts_main else self._untouched(model, packed)

    def _untouched(self, model: Any, packed: PackedTrace) -> torch.Tensor:
        """The agent reads the main thread without a gradient; the side threads go on from its cache."""
        bare = self.accelerator.unwrap_model(model)
        ids, positions, mask = self._inputs(packed)
        main, cache = packed.main, None
        with active(bare, self.agent), torch.no_grad():
            for begin in range(0, main, CHUNK):
                end = min(begin + CHUNK, main)
                cache = bare(
                    input_ids=ids[:, begin:end],
                    position_ids=positions[:, begin:end],
                    attention_mask=mask[:, :, begin:end, :end],
                    use_cache=True,
                    logits_to_keep=torch.zeros(0, dtype=torch.long, device=ids.device),
                    **{CACHE_NAME: cache},
                )[CACHE_NAME]
        at = (packed.targets[main:] != -100).nonzero()[:, 0]
        output = model(
            input_ids=ids[:, main:],
            position_ids=positions[:, main:],
            attention_mask=mask[:, :, main:],
            logits_to_keep=(at - 1).to(ids.device),
            **{CACHE_NAME: cache},
        )
        return cross_entropy(output.logits[0].float(), packed.targets[main + at].to(ids.device))

    def _adapted(self, model: Any, packed: PackedTrace) -> torch.Tensor:
        bare = self.accelerator.unwrap_model(model)
        ids, positions, mask = self._inputs(packed)
        side, main = (packed.targets != -100).nonzero()[:, 0], packed.main
        spoken = packed.spoken - 1
        with active(bare, self.agent), torch.no_grad():
            agent = bare(
                input_ids=ids[:, :main],
                position_ids=positions[:, :main],
                attention_mask=mask[:, :, :main, :main],
                use_cache=False,
                logits_to_keep=spoken.to(ids.device),
            ).logits[0]
        output = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            use_cache=False,
            logits_to_keep=torch.cat([spoken, side - 1]).to(ids.device),
        )
        own, said = output.logits[0].float().split([len(spoken), len(side)])
        drift = kl_div(log_softmax(own, -1), log_softmax(agent.float(), -1), log_target=True, reduction="batchmean")
        return cross_entropy(said, packed.targets[side].to(ids.device)) + self.recipe.distillation * drift

    def _inputs(self, packed: PackedTrace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device = self.args.device
        dtype = torch.bfloat16 if self.args.bf16 else torch.float32
        return packed.ids[None].to(device), packed.positions[None].to(device), as_mask(packed.sees.to(device), dtype)


def accumulation(config: RecipeConfig, processes: int) -> int:
    """
    Traces that each process reads in a step, one after another: together they read `config.batch`.

    Raises:
        ValueError: the processes cannot share them evenly.
    """
    if config.batch % processes:
        raise ValueError(
            f"RecipeConfig.batch={config.batch} traces in a step cannot be shared evenly by {processes} processes: "
            "take a multiple of them, or start another number (accelerate launch --num_processes)."
        )
    return config.batch // processes


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    traces: list[Trace],
    tool_format: ToolFormat,
    config: RecipeConfig,
    state: Path,
    **settings: Any,
) -> Trainer:
    """Trains `side` in place; a run that was stopped goes on from its last checkpoint in `state`."""
    _activate(model, (*main_adapters(config), SIDE))
    steps = max(1, len(traces) // config.batch) * config.epochs
    arguments = TrainingArguments(
        **{
            "output_dir": str(state),
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": accumulation(config, PartialState().num_processes),
            "max_steps": steps,
            "learning_rate": config.learning_rate,
            "warmup_steps": max(1, steps // 20),
            "lr_scheduler_type": "linear",
            "adam_beta2": 0.95,
            "max_grad_norm": 1.0,
            "logging_steps": 5,
            "save_steps": SAVED_EVERY,
            "save_total_limit": 2,
            "report_to": "none",
            "seed": config.seed,
            "bf16": True,
            "use_cpu": not torch.cuda.is_available(),
            "remove_unused_columns": False,
            **settings,
        }
    )
    trainer = SideTrainer(
        config,
        model=model,
        args=arguments,
        train_dataset=PackedTraces(traces, tokenizer, tool_format),
        data_collator=lambda items: items[0],
    )
    trainer.train(resume_from_checkpoint=any(state.glob("checkpoint-*")) or None)
    return trainer
