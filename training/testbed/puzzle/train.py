"""Train the bundled `puzzle` model: a masked diffusion language model that fills in Sudokus, sums and countdowns.

python -m hf_infeco.training.testbed.puzzle.train --out examples/models/puzzle --seed 0

Every batch is of new puzzles; the table `STAGES` says of which. A row has a random number of its answer's tokens
masked, and the loss is that of LLaDA: the mean over what is masked, so that every share of masks counts alike.
"""

import argparse
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from hf_infeco.remix import MaskedDiffusionConfig, MaskedDiffusionLM
from hf_infeco.remix.mixing import soft_embeddings

from ..facts import write_training
from .puzzles import MASK, PAD, TASKS, VOCAB_SIZE, Puzzle, draw, encode


@dataclass(frozen=True)
class Stage:
    """One row of the curriculum.

    Attributes:
        steps: optimizer steps.
        rows: puzzles of each kind in a batch.
        operations: of countdowns. Products teach arithmetic, but which of 27 ways leads to the target is not learned
            in so few steps; sums and differences leave 12.
        mixed: half the rows show soft embeddings at their masks. A model of this size that has seen nothing but masks
            takes them for something else, and loses accuracy by mixing.
    """

    steps: int
    rows: dict[str, int]
    operations: str
    mixed: bool


STAGES = (
    Stage(2000, {"sudoku": 42, "addition": 42, "countdown": 42}, "+-*", False),
    Stage(1000, {"sudoku": 32, "addition": 32, "countdown": 64}, "+-", True),
)
STEPS = sum(stage.steps for stage in STAGES)
RATE, WARM_UP, DECAY = 2e-3, 200, 1 / 6  # learning rate, steps it rises, share of the steps in which it falls
BETAS, WEIGHT_DECAY, MAX_GRAD_NORM = (0.9, 0.95), 0.01, 1.0
SAVED_EVERY = 500  # steps


def puzzle_config() -> MaskedDiffusionConfig:
    """Shape of the bundled model, 2.0 M parameters."""
    return MaskedDiffusionConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        max_position_embeddings=64,
        mask_token_id=MASK,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
    )


def learning_rate(step: int, steps: int) -> float:
    """Up in a straight line, level, then down to a hundredth in another straight line."""
    return RATE * min((step + 1) / WARM_UP, 1.0, max(0.01, (steps - step) / (DECAY * steps)))


def masked_rows(puzzles: list[Puzzle], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """
    Rows padded on the left, and what was masked in them.

    Returns:
        ids (int64, `[rows, T]`) with masks; targets (int64, `[rows, T]`), -100 where nothing is masked.
    """
    length = max(len(puzzle.prompt) + len(puzzle.answer) for puzzle in puzzles)
    whole = torch.tensor([[PAD] * (length - len(row)) + row for row in (encode(p.prompt + p.answer) for p in puzzles)])
    answers = torch.tensor([len(puzzle.answer) for puzzle in puzzles])[:, None]
    count = (torch.rand(len(puzzles), 1, generator=generator) * answers).long() + 1
    draws = torch.rand(whole.shape, generator=generator)
    draws[torch.arange(length) < length - answers] = 2.0  # of prompts and padding, which stay as they are
    is_masked = draws.argsort(1).argsort(1) < count
    return whole.masked_fill(is_masked, MASK), whole.masked_fill(~is_masked, -100)


class Trainer:
    """
    Args:
        model: trained in place, on the device it is on.
        seed (`int`): of puzzles and masks.
        stages: the curriculum.
    """

    def __init__(self, model: MaskedDiffusionLM, seed: int, stages: tuple[Stage, ...] = STAGES) -> None:
        self.model = model
        self.plan = [stage for stage in stages for _ in range(stage.steps)]
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
        self.taken = 0
        self.recent: deque[float] = deque(maxlen=100)  # losses, nats per masked token
        self.seconds = 0.0

    def run(
        self, progress: bool = True, save: Callable[[], object] | None = None, saved_every: int = SAVED_EVERY
    ) -> None:
        """The steps that are left; an interrupt leaves the model as far as it got."""
        bar = tqdm(range(self.taken, len(self.plan)), desc="puzzle", disable=not progress, mininterval=10)
        for step in bar:
            begin = time.monotonic()
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, len(self.plan))
            stage = self.plan[step]
            puzzles = [puzzle for task in TASKS for puzzle in self._draw(task, stage)]
            self.recent.append(self._step(*masked_rows(puzzles, self.generator), stage.mixed))
            self.taken = step + 1
            self.seconds += time.monotonic() - begin
            bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
            if save and self.taken % saved_every == 0:
                save()

    @property
    def loss(self) -> float:
        return sum(self.recent) / max(len(self.recent), 1)

    def _draw(self, task: str, stage: Stage) -> list[Puzzle]:
        how = {"operations": stage.operations} if task == "countdown" else {}
        return draw(task, stage.rows[task], self.generator, **how)

    def _step(self, ids: Tensor, targets: Tensor, mixed: bool) -> float:
        ids, targets = ids.to(self.model.device), targets.to(self.model.device)
        embeds = self._mixed_embeds(ids) if mixed else self.model.get_input_embeddings()(ids)
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = self.model(inputs_embeds=embeds, attention_mask=(ids != PAD).long()).logits
        is_masked = targets != -100
        losses = cross_entropy(logits[is_masked].float(), targets[is_masked], reduction="none")
        # Each row's mean over its masked tokens, so that rows of few masks weigh as much as rows of many.
        loss = (losses / is_masked.sum(1, keepdim=True).expand_as(is_masked)[is_masked]).sum() / len(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def _mixed_embeds(self, ids: Tensor) -> Tensor:
        """Embeddings `[rows, T, d]`, in every second row those that ReMix shows after a forward, at a random beta."""
        weight = self.model.get_input_embeddings().weight
        embeds = weight[ids]
        some = ids[::2]
        with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16):
            logits = self.model(some, attention_mask=(some != PAD).long()).logits[some == MASK].float()
        logits[:, MASK] = float("-inf")
        beta = float(torch.rand((), generator=self.generator))
        embeds[::2][some == MASK] = soft_embeddings(logits.softmax(1), weight, MASK, beta)
        return embeds

    def state_dict(self) -> dict:
        """Everything `load_state_dict` needs to go on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "taken": self.taken,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where the run that made `state` had got to."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.taken, self.seconds = state["taken"], state["seconds"]


def save(model: MaskedDiffusionLM, out: Path) -> None:
    """Write the model in bf16 to `out`; `model` itself stays as it is."""
    shipped = MaskedDiffusionLM(model.config)
    shipped.load_state_dict(model.state_dict())
    shipped.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    """Command line: train, save at the end or on Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/models/puzzle"), help="folder of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="file to keep the run in; if it exists, the run goes on from it")
    options = parser.parse_args()

    # A shell starts background jobs with Ctrl-C ignored; a run that cannot be stopped cannot be saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    # SDPA's backward is slow on CPUs at lengths as short as these.
    model = MaskedDiffusionLM._from_config(puzzle_config(), attn_implementation="eager").to(device)
    trainer = Trainer(model, options.seed + 1)
    if options.state and options.state.exists():
        trainer.load_state_dict(torch.load(options.state, weights_only=True))
    print(f"{model.num_parameters():,} parameters on {device}")
    try:
        trainer.run(save=lambda: options.state and torch.save(trainer.state_dict(), options.state))
    except KeyboardInterrupt:
        print(f"interrupted after {trainer.taken} steps")
    save(model, options.out)
    facts = {
        "seed": options.seed,
        "steps": trainer.taken,
        "puzzles": sum(sum(stage.rows.values()) for stage in trainer.plan[: trainer.taken]),
        "loss": round(trainer.loss, 4),
        "minutes": round(trainer.seconds / 60, 1),
    }
    write_training(options.out, facts, model.device)
    print(f"saved {options.out}: model.safetensors, config.json and training.json")


if __name__ == "__main__":
    main()
