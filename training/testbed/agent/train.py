"""Train the `agent` adapter: a LoRA of SmolLM2-135M-Instruct that answers with search, open and find.

python -m hf_infeco.training.testbed.agent.train --model FOLDER_OR_NAME --out examples/models/agent

The data are the expert's traces of new worlds; the loss is on what the assistant writes. A run that is stopped goes on
from its last checkpoint in `--state`.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from hf_infeco.sidequest import CursorMap

from ...sidequest.config import LINEAR
from ...sidequest.rollouts import written
from ..facts import call_base, write_training
from .tasks import make_task

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
STEPS, TOKENS = 320, 600  # optimizer steps, and tokens that a step has at least
RATE, WARM_UP, BETAS = 1.5e-3, 5, (0.9, 0.95)
SAVED_EVERY = 20
# (hops, parts) -> weight in the draw.
MIX = {(1, 1): 4, (2, 1): 18, (3, 1): 18, (4, 1): 14, (6, 1): 4, (1, 2): 8, (2, 2): 18, (3, 2): 4}


def lora_config() -> LoraConfig:
    """All linear layers of the upper 22 of SmolLM2's 30, 3.6 MB in bfloat16; nothing below is differentiated."""
    return LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=list(LINEAR),
        layers_to_transform=list(range(8, 30)),
        layers_pattern="layers",
        task_type="CAUSAL_LM",
    )


def load_base(model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    The base model in bfloat16 with its tokenizer.

    Args:
        model: a folder, or a model of the Hub.
    """
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16), AutoTokenizer.from_pretrained(model)


class Traces(torch.utils.data.Dataset):
    """
    Traces of the expert, packed: an item holds whole traces until it has `TOKENS` tokens.

    An item has `input_ids`, `position_ids` (from 0 for each trace, which is how transformers knows that none may see
    another) and `labels` (-100 where the assistant did not write), int64 `[1, T]`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, steps: int, seed: int) -> None:
        self.tokenizer, self.steps, self.seed = tokenizer, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        draw = random.Random(f"{self.seed} {step}")
        columns: dict[str, list[int]] = {"input_ids": [], "position_ids": [], "labels": []}
        while len(columns["input_ids"]) < TOKENS:
            task = make_task(draw.randrange(1_000_000), *draw.choices(list(MIX), list(MIX.values()))[0])
            cursors = CursorMap.from_messages(self.tokenizer, task.messages + task.solution)
            labels = [-100] * len(cursors.ids)
            for at in written(cursors):
                labels[at] = cursors.ids[at]
            columns["input_ids"] += cursors.ids
            columns["position_ids"] += range(len(cursors.ids))
            columns["labels"] += labels
        return {name: torch.tensor(column)[None] for name, column in columns.items()}


class AgentTrainer(Trainer):
    """Computes logits only where there is something to predict: the vocabulary is most of a small model."""

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        targets = inputs["labels"][0, 1:]
        at = (targets != -100).nonzero()[:, 0]
        output = model(
            input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False, logits_to_keep=at
        )
        return cross_entropy(output.logits[0].float(), targets[at])


def train(model: PeftModel, tokenizer: PreTrainedTokenizerBase, state: Path, seed: int, steps: int) -> Trainer:
    """Runs or goes on with the training in `state`; returns the trainer, whose log holds the losses."""
    arguments = TrainingArguments(
        output_dir=str(state),
        per_device_train_batch_size=1,
        max_steps=steps,
        learning_rate=RATE,
        warmup_steps=WARM_UP,
        lr_scheduler_type="linear",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=5,
        save_steps=SAVED_EVERY,
        save_total_limit=2,
        report_to="none",
        seed=seed,
        remove_unused_columns=False,
    )
    trainer = AgentTrainer(
        model=model, args=arguments, train_dataset=Traces(tokenizer, steps, seed), data_collator=lambda items: items[0]
    )
    trainer.train(resume_from_checkpoint=any(state.glob("checkpoint-*")) or None)
    return trainer


def save(model: PeftModel, out: Path) -> None:
    """Writes the adapter in bfloat16 to `out`, without the path of the base model on this machine."""
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "adapter_model.safetensors").chmod(0o644)
    call_base(out, BASE)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BASE, help="a folder or a model of the Hub; `make real` fetches one")
    parser.add_argument("--out", type=Path, default=Path("examples/models/agent"))
    parser.add_argument("--state", type=Path, default=Path(".out/agent"), help="folder of the checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    transformers.set_seed(options.seed)
    base, tokenizer = load_base(options.model)
    model = get_peft_model(base, lora_config())
    model.print_trainable_parameters()
    begin = time.monotonic()
    trainer = train(model, tokenizer, options.state, options.seed, options.steps)
    save(model, options.out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    facts = {
        "seed": options.seed,
        "steps": trainer.state.global_step,
        "tokens_per_step": TOKENS,
        "loss": round(sum(losses[-5:]) / len(losses[-5:]), 4),
        "minutes": round((time.monotonic() - begin) / 60, 1),
    }
    print(f"saved {options.out}: {write_training(options.out, facts, base.device)}")


if __name__ == "__main__":
    main()
