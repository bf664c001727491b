"""Train the bundled `recall` model: text tokenizer, curriculum, checkpoint.

python -m hf_infeco.training.testbed.recall.train --out examples/models/recall --seed 0

The curriculum is the table `STAGES`. First dense dictionaries, until the model finds out that a key can be looked up
(a sharp phase change); then the same lookups in real text of growing length, with language model loss on that text.
"""

import argparse
import json
import logging
import platform
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .lookup_heads import wire_lookup_heads
from .rows import ANSWER, TEXT, Batch, RowSampler
from .text import encode_text, train_tokenizer, training_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One row of the curriculum; it ends after `steps`, or earlier when answers are right often enough.

    Attributes:
        seq_len, rows: shape of a batch.
        keys, lookups, closing: see `RowSampler.batch`.
        stretch: positions jump up to 32K.
        text_weight: weight of the mean text loss beside the mean answer loss.
        steps: most optimizer steps.
        until: running accuracy of answers (last 50 steps) that ends the stage; above 1 means never.
        rate, final_rate: learning rate at the start and the end of the stage's `steps`, falling in a straight line.
    """

    seq_len: int
    rows: int
    keys: int
    lookups: int
    closing: int
    stretch: bool
    text_weight: float
    steps: int
    until: float
    rate: float
    final_rate: float


STAGES = (
    Stage(64, 64, 6, 15, 0, False, 0.0, 300, 0.97, 2e-3, 2e-3),
    Stage(256, 16, 16, 24, 8, True, 1.0, 200, 0.97, 2e-3, 2e-3),
    Stage(1024, 4, 32, 48, 32, True, 1.0, 1600, 2.0, 2e-3, 1.2e-3),
    Stage(4096, 1, 64, 96, 64, True, 1.0, 200, 2.0, 1.2e-3, 4e-4),
    Stage(16384, 1, 64, 96, 64, True, 1.0, 30, 2.0, 4e-4, 4e-5),
)
WARM_UP = 50  # steps
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


def recall_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Shape of the bundled model, 2.2 M parameters.

    Attention biases, untied embeddings and a wide initialisation are what lets so narrow a model form lookup heads.
    """
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        attention_bias=True,
        tie_word_embeddings=False,
        initializer_range=0.08,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=32768,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )


class Trainer:
    """Model, optimizer, sampler and the place in the curriculum: all that a resumed run needs.

    Args:
        model: trained in place, on the device it is on.
        sampler: where batches come from.
        stages: the curriculum.
    """

    def __init__(self, model: LlamaForCausalLM, sampler: RowSampler, stages: tuple[Stage, ...] = STAGES) -> None:
        self.model, self.sampler, self.stages = model, sampler, stages
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=stages[0].rate, betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        self.finished = 0  # stages
        self.taken = 0  # optimizer steps
        self.seconds = 0.0  # spent in them

    def run(self, deadline: float = float("inf"), progress: bool = True) -> Iterator[int]:
        """Train through the remaining stages; yields the number of each finished one, so that the caller can save.

        Ends early once `time.monotonic()` passes `deadline`.
        """
        for number in range(self.finished, len(self.stages)):
            if not self._stage(number, deadline, progress):
                logger.warning("out of time in stage %d after %d steps altogether", number, self.taken)
                return
            self.finished = number + 1
            yield number

    def _stage(self, number: int, deadline: float, progress: bool) -> bool:
        stage, recent = self.stages[number], deque(maxlen=50)
        bar = tqdm(range(stage.steps), desc=f"stage {number}: {stage.seq_len} tokens", disable=not progress)
        for step in bar:
            if time.monotonic() > deadline:
                return False
            rate = stage.rate + (stage.final_rate - stage.rate) * step / stage.steps
            for group in self.optimizer.param_groups:
                group["lr"] = rate * min(1.0, (self.taken + 1) / WARM_UP)
            batch = self.sampler.batch(
                stage.rows, stage.seq_len, stage.keys, stage.lookups, stage.closing, stage.stretch
            )
            begin = time.monotonic()
            text_loss, accuracy = train_step(self.model, self.optimizer, batch, stage.text_weight)
            self.seconds += time.monotonic() - begin
            recent.append((accuracy, text_loss))
            self.taken += 1
            mean_accuracy, mean_loss = (sum(column) / len(recent) for column in zip(*recent))
            bar.set_postfix(accuracy=f"{mean_accuracy:.4f}", text=f"{mean_loss:.3f}", refresh=False)
            if len(recent) == recent.maxlen and mean_accuracy >= stage.until:
                break
        bar.close()
        return True

    def state_dict(self) -> dict:
        """Everything `load_state_dict` needs to go on at the next stage."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.sampler.generator.get_state(),
            "finished": self.finished,
            "taken": self.taken,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where the run that made `state` had got to."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.generator.set_state(state["generator"])
        self.finished, self.taken, self.seconds = state["finished"], state["taken"], state["seconds"]


def train_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: Batch, text_weight: float
) -> tuple[float, float]:
    """One optimizer step; returns the mean text loss (nats per token) and the share of answer tokens predicted."""
    device = model.device
    ids, kinds = batch.ids.to(device), batch.kinds[:, 1:].to(device)
    wanted = kinds == ANSWER if text_weight == 0 else kinds > 0
    with torch.autocast(device.type, torch.bfloat16):
        # Without a mask transformers takes every jump in the positions for the start of another packed sequence.
        hidden = model.model(
            input_ids=ids,
            position_ids=batch.positions.to(device),
            attention_mask=torch.ones_like(ids),
            use_cache=False,
        ).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][wanted])
    targets, kinds = ids[:, 1:][wanted], kinds[wanted]
    losses = cross_entropy(logits.float(), targets, reduction="none")
    answers, text = losses[kinds == ANSWER], losses[kinds == TEXT]
    text_loss = text.mean() if len(text) else losses.new_zeros(())
    (answers.mean() + text_weight * text_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()
    right = logits[kinds == ANSWER].argmax(dim=-1) == targets[kinds == ANSWER]
    return float(text_loss.detach()), float(right.float().mean())


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model in bf16 and its tokenizer to `out`; `model` itself stays as it is."""
    shipped = LlamaForCausalLM(model.config)
    shipped.load_state_dict(model.state_dict())
    shipped.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def encode_documents(tokenizer: PreTrainedTokenizerFast, documents: list[str], seed: int) -> Tensor:
    """All documents in random order, two newlines between, as one run of token ids `[num_tokens]`."""
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [torch.tensor(encode_text(tokenizer, documents[index] + "\n\n")) for index in order]
    return torch.cat(ids).long()


def main() -> None:
    """Command line: train, save after every stage, save on Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/models/recall"), help="folder of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after this long; what is learned by then is saved")
    parser.add_argument("--state", type=Path, help="file to keep the run in; if it exists, the run goes on from it")
    options = parser.parse_args()

    # A shell starts background jobs with Ctrl-C ignored; a run that cannot be stopped cannot be saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    documents = training_text()
    print(f"reading {len(documents)} documents of the standard library")
    tokenizer = train_tokenizer(documents)
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(recall_config(tokenizer))
    wire_lookup_heads(model)
    text_ids = encode_documents(tokenizer, documents, options.seed)
    trainer = Trainer(model.to(device), RowSampler(tokenizer, text_ids, options.seed))
    if options.state and options.state.exists():
        trainer.load_state_dict(torch.load(options.state, weights_only=True))
    print(f"{model.num_parameters():,} parameters, {len(text_ids):,} tokens of text, on {device}")
    try:
        for number in trainer.run(time.monotonic() + 60 * options.minutes if options.minutes else float("inf")):
            save(model, tokenizer, options.out)
            if options.state:
                torch.save(trainer.state_dict(), options.state)
            print(f"stage {number} done after {trainer.taken} steps, saved {options.out}")
    except KeyboardInterrupt:
        print(f"interrupted after {trainer.taken} steps")
    save(model, tokenizer, options.out)
    facts = {
        "seed": options.seed,
        "steps": trainer.taken,
        "stages_finished": trainer.finished,
        "minutes": round(trainer.seconds / 60, 1),
        "text_tokens": len(text_ids),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads",
    }
    (options.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"saved {options.out}: training.json, model.safetensors, config.json and the tokenizer")


if __name__ == "__main__":
    main()
