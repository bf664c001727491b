"""Random sets of sequences with everything that real catalogues have, tiny models, and the rules written plainly."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_infeco.static import StaticIndex

VOCAB, PAD, EOS = 101, 0, 2
TOKENS = range(3, 40)


def random_sequences(seed: int, count: int = 300, length: int = 4, variable: bool = False) -> list[list[int]]:
    """Unsorted, skewed towards a few first tokens, about a tenth of them repeated."""
    generator = np.random.default_rng(seed)
    sequences = []
    for _ in range(count):
        size = int(generator.integers(1, length + 1)) if variable else length
        draws = generator.geometric(0.15, size) if generator.random() < 0.5 else generator.integers(0, 37, size)
        sequences.append([TOKENS[int(draw) % len(TOKENS)] for draw in draws])
    repeated = generator.integers(0, count, count // 10)
    return sequences + [sequences[row] for row in repeated]


def random_index(seed: int, **shape) -> tuple[StaticIndex, list[list[int]]]:
    sequences = random_sequences(seed, **shape)
    return StaticIndex.build(sequences, vocab_size=VOCAB), sequences


def tiny_model(vocab_size: int = VOCAB) -> LlamaForCausalLM:
    """Random weights, drawn wide enough that its choices differ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.15,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


def prompt(batch: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(40, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


class DictTrie:
    """What may follow each prefix, as a plain dict: the rule that every path is compared with."""

    def __init__(self, sequences: list[list[int]], eos_token_id: int | None = None):
        self.whole = {tuple(sequence) for sequence in sequences}
        self.next: dict[tuple[int, ...], set[int]] = {}
        for sequence in self.whole:
            for at, token in enumerate(sequence):
                self.next.setdefault(sequence[:at], set()).add(token)
            if eos_token_id is not None:
                self.next.setdefault(sequence, set()).add(eos_token_id)

    def allowed_fn(self, prompt_length: int):
        """For transformers' `prefix_allowed_tokens_fn`, which refuses an empty answer: finished rows get padding."""
        return lambda batch, row: sorted(self.next.get(tuple(row[prompt_length:].tolist()), {PAD, EOS}))
