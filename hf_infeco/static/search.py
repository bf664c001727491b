"""`constrained_beam_search`: a beam search that looks at nothing but what the index allows."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)

from ..decoding import Forward
from .beams import Beams
from .index import StaticIndex
from .priors import LogPriors, require_priors_of
from .sequences import as_tokens

NORMALIZATIONS = ("vocabulary", "level")
KNOWN_CRITERIA = (MaxLengthCriteria, EosTokenCriteria)  # the index says where a sequence ends


@dataclass(frozen=True)
class ConstrainedBeams:
    """
    What a search found, best first.

    Attributes:
        ranks (`torch.Tensor` of int64, `[B, beams]`): sequences of the index, -1 where there are fewer than beams.
        scores (`torch.Tensor` of float32, `[B, beams]`): sum of the tokens' log-probabilities, -inf for rank -1.
        sequences (`torch.Tensor` of int64, `[B, beams, L]`): their tokens, -1 behind the end.
        index (`StaticIndex`): the index that was searched.
    """

    ranks: torch.Tensor
    scores: torch.Tensor
    sequences: torch.Tensor
    index: StaticIndex

    @property
    def items(self) -> list[list[tuple[int | str, float]]]:
        """The items found for each prompt with their scores; items that share a sequence come one after the other."""
        return [
            [(item, score) for rank, score in zip(*row, strict=True) if rank >= 0 for item in self.index.items(rank)]
            for row in zip(self.ranks.tolist(), self.scores.tolist(), strict=True)
        ]


def constrained_beam_search(
    model: PreTrainedModel,
    inputs: Any,
    index: StaticIndex,
    num_beams: int = 70,
    *,
    normalize: str = "vocabulary",
    eos_token_id: int | None = None,
    log_priors: LogPriors | None = None,
    **generate_kwargs: Any,
) -> ConstrainedBeams:
    """
    The best sequences of an index by beam search (STATIC, arXiv 2602.22647).

    Finds what `generate` finds with as many beams, a `StaticLogitsProcessor` and `length_penalty=0.0`, in less time:
    the prompt is read once and not once per beam, the trie's nodes travel with the beams, and only the candidates are
    ranked and not the whole vocabulary. Patched models keep their cache and attention.

    Args:
        inputs: input ids `[B, T]` or a mapping of the model's inputs, as a tokenizer returns it, in tensors, arrays or
            lists; pad on the left.
        num_beams (`int`, defaults to 70): beams per prompt, and sequences returned.
        normalize (`str`, defaults to "vocabulary"): what a token's probability is relative to: the whole vocabulary,
            or the tokens that occur at this level of the index ("level"), for which the head computes no others.
        eos_token_id (`int`, *optional*): scored behind every sequence. Without it a sequence ends for free, and of two
            of which one begins with the other, the shorter always ranks higher.
        log_priors (`LogPriors`, *optional*): of `index.log_priors(...)`, added to the sequences' scores.
        generate_kwargs: passed on to `generate`, such as a cache. Sampling, penalties and other logits
            processors do not apply and raise an error.
    """
    given = dict(inputs) if isinstance(inputs, Mapping) else {"input_ids": inputs}
    is_plain = {name: isinstance(value, list | np.ndarray) for name, value in given.items()}
    inputs = {
        name: torch.as_tensor(value, device=model.device) if is_plain[name] else value for name, value in given.items()
    }
    # BART forces its end token where the length is used up; here the index says where a sequence ends.
    settings = {"forced_eos_token_id": None, "do_sample": False, "max_new_tokens": index.length + 1, **generate_kwargs}
    return model.generate(
        **inputs,
        **settings,
        custom_generate=static_generate,
        index=index,
        num_beams=num_beams,
        normalize=normalize,
        eos_token_id=eos_token_id,
        log_priors=log_priors,
    )


def static_generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    index: StaticIndex,
    num_beams: int = 70,
    normalize: str = "vocabulary",
    eos_token_id: int | None = None,
    log_priors: LogPriors | None = None,
    **model_kwargs: Any,
) -> ConstrainedBeams:
    """`constrained_beam_search` as `generate(custom_generate=static_generate, index=index, num_beams=70)`."""
    num_beams = operator.index(num_beams)
    _check_settings(logits_processor, stopping_criteria, generation_config, num_beams, normalize)
    eos_token_id = _end_token(eos_token_id, index)
    if index.device != input_ids.device:
        raise ValueError(f"The index is on {index.device}, the inputs on {input_ids.device}: move it with index.to().")
    forward = Forward(model, input_ids, generation_config, model_kwargs)
    require_priors_of(index, log_priors)
    beams = Beams(index.trie, len(input_ids), num_beams, eos_token_id, log_priors)
    steps = index.length + (eos_token_id is not None)
    for depth in range(steps):
        tokens = beams.level_tokens(depth) if normalize == "level" else None
        logits = forward.beams(tokens) if depth else forward.prompts(tokens)
        if tokens is None and logits.shape[1] != index.vocab_size:
            raise ValueError(
                f"The model scores {logits.shape[1]} tokens, the index was built for vocab_size={index.vocab_size}; "
                f"build it with vocab_size={logits.shape[1]} and this model's tokens."
            )
        if depth == 0:
            forward.open_beams(num_beams)
        rows, token = beams.advance(logits, tokens, depth)
        if index.is_variable and beams.are_settled():
            break
        if depth + 1 < steps:
            forward.choose(rows, token)
    else:
        if eos_token_id is None:
            beams.finish(index.length)
    return ConstrainedBeams(beams.found_ranks, beams.found_scores, index.sequences(beams.found_ranks), index)


def _end_token(eos_token_id: Any, index: StaticIndex) -> int | None:
    tokens = as_tokens(eos_token_id, "eos_token_id")
    if len(tokens) > 1 or not all(0 <= token < index.vocab_size for token in tokens):
        raise ValueError(
            f"eos_token_id={eos_token_id} must be one token of the index's vocabulary of {index.vocab_size}: the one "
            "with which the model ends a sequence."
        )
    return tokens[0] if tokens else None


def _check_settings(
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    num_beams: int,
    normalize: str,
) -> None:
    """Whatever would change what `generate` returns, and is not done here, is refused."""
    if num_beams < 1:
        raise ValueError(f"num_beams={num_beams} must be at least 1.")
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize={normalize!r} is none of {NORMALIZATIONS}.")
    if generation_config.do_sample or generation_config.num_beams > 1 or generation_config.num_return_sequences > 1:
        raise ValueError(
            "The generation config asks for sampling, or sets num_beams or num_return_sequences by itself. Pass "
            "do_sample=False and num_beams= in the call; as many sequences as beams are returned."
        )
    others = [type(entry).__name__ for entry in logits_processor]
    others += [type(entry).__name__ for entry in stopping_criteria if not isinstance(entry, KNOWN_CRITERIA)]
    if others:
        raise ValueError(
            f"{others} do not apply to constrained_beam_search, which scores candidates as the model does. Switch "
            "them off in the generation config, say with forced_bos_token_id=None, or use generate() with a "
            "StaticLogitsProcessor."
        )
