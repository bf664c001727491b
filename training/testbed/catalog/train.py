"""Train the bundled `catalog` model: the next item of a user's history, as a semantic id.

python -m hf_infeco.training.testbed.catalog.train --out examples/models/catalog --seed 0

Every batch is of new users. What is trained on ends before the fresh items of the catalogue come, so the model never
sees one.
"""

import argparse
import json
import platform
import signal
import time
from collections import deque
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from .catalogue import BOS, PAD, VOCAB_SIZE, Catalogue, encode_histories

STEPS, USERS, EVENTS = 700, 64, 13  # optimizer steps, users in a batch, items a user buys
RATE, WARM_UP = 3e-3, 60
BETAS, WEIGHT_DECAY, MAX_GRAD_NORM = (0.9, 0.95), 0.05, 1.0


def catalog_config() -> LlamaConfig:
    """Shape of the bundled model, 1.4 M parameters."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=40,
        tie_word_embeddings=True,
        initializer_range=0.05,
        max_position_embeddings=256,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=PAD,
    )


def learning_rate(step: int, steps: int) -> float:
    """Up in a straight line, then down to a hundredth in another."""
    return RATE * min((step + 1) / WARM_UP, 1 - 0.99 * step / steps)


class Trainer:
    """
    Args:
        model: trained in place, on the device it is on.
        catalogue: whose users it learns from.
        seed (`int`): of the users.
        steps (`int`): optimizer steps of the whole run.
    """

    def __init__(self, model: LlamaForCausalLM, catalogue: Catalogue, seed: int, steps: int = STEPS) -> None:
        self.model, self.catalogue, self.steps = model, catalogue, steps
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
        self.taken = 0
        self.loss = float("nan")  # nats per token, over the last 50 steps
        self.seconds = 0.0

    def run(self, progress: bool = True) -> None:
        """All steps; an interrupt leaves the model as far as it got."""
        recent: deque[float] = deque(maxlen=50)
        bar = tqdm(range(self.steps), desc="catalog", disable=not progress)
        for step in bar:
            begin = time.monotonic()
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, self.steps)
            histories = self.catalogue.sample_histories(USERS, EVENTS, self.generator)
            recent.append(self._step(encode_histories(self.catalogue, histories)))
            self.taken, self.loss = step + 1, sum(recent) / len(recent)
            self.seconds += time.monotonic() - begin
            bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)

    def _step(self, ids: Tensor) -> float:
        ids = ids.to(self.model.device)
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = self.model(ids[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def save(model: LlamaForCausalLM, catalogue: Catalogue, out: Path) -> None:
    """Write the model in bf16 and its catalogue to `out`; `model` itself stays as it is."""
    shipped = LlamaForCausalLM(model.config)
    shipped.load_state_dict(model.state_dict())
    shipped.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    catalogue.write(out / "items.csv")


def main() -> None:
    """Command line: train, save at the end or on Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/models/catalog"), help="folder of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()

    # A shell starts background jobs with Ctrl-C ignored; a run that cannot be stopped cannot be saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(catalog_config()).to(device)
    catalogue = Catalogue.invent(options.seed)
    print(f"{model.num_parameters():,} parameters, {len(catalogue.codes):,} items, on {device}")
    trainer = Trainer(model, catalogue, options.seed + 1, options.steps)
    try:
        trainer.run()
    except KeyboardInterrupt:
        print(f"interrupted after {trainer.taken} steps")
    save(model, catalogue, options.out)
    facts = {
        "seed": options.seed,
        "steps": trainer.taken,
        "users": trainer.taken * USERS,
        "loss": round(trainer.loss, 4),
        "minutes": round(trainer.seconds / 60, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU thread",
    }
    (options.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"saved {options.out}: model.safetensors, config.json, items.csv and training.json")


if __name__ == "__main__":
    main()
