"""What users do with `generate`, each as a function from a model to `(sequences, logits)`."""

import torch
from transformers import PreTrainedModel

from hf_infeco import CACHE_NAME, InnerQCache, InnerQConfig

from .families import PAD, VOCAB, prompt

Result = tuple[torch.Tensor, torch.Tensor]


def run(model: PreTrainedModel, ids: torch.Tensor, **kwargs) -> Result:
    """`generate` with 12 new tokens; sequences `[B, length]` and raw logits `[steps, rows, vocab]`."""
    torch.manual_seed(0)
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids), **kwargs}
    out = model.generate(ids, return_dict_in_generate=True, output_logits=True, **settings)
    return out.sequences, torch.stack(out.logits)


class OnPackedCache:
    """An unpatched model on a packed cache, which its own attention dequantizes: the oracle of attending packed."""

    def __init__(self, model: PreTrainedModel, innerq: InnerQConfig):
        self.model, self.innerq = model, innerq

    def generate(self, ids, **kwargs):
        cache = InnerQCache(self.model.config, self.innerq)
        cache.set_left_padding(kwargs.get("attention_mask"))
        return self.model.generate(ids, **{CACHE_NAME: cache, **kwargs})


def pad_left(ids: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`pad` padding tokens before every row: ids and mask `[B, pad + length]`."""
    mask = torch.nn.functional.pad(torch.ones_like(ids), (pad, 0))
    return torch.nn.functional.pad(ids, (pad, 0), value=PAD), mask


def greedy(model):
    return run(model, prompt(2, 60))


def sampling(model):
    return run(model, prompt(2, 60), do_sample=True, top_k=20, temperature=0.8)


def beams(model):
    return run(model, prompt(2, 60), num_beams=3, length_penalty=0.0)


def left_padding(model):
    ids = prompt(2, 60)
    mask = torch.ones_like(ids)
    mask[1, :23] = 0
    return run(model, ids.masked_fill(mask == 0, PAD), attention_mask=mask)


def chunked_prefill(model):
    return run(model, prompt(1, 60), prefill_chunk_size=17)


def two_turns(model):
    """A second question on the cache that the first answer left."""
    first = model.generate(prompt(1, 50), max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, prompt(1, 9, seed=3)], dim=1)
    return run(model, ids, **{CACHE_NAME: first[CACHE_NAME]})


def prompt_lookup(model):
    """Drafts are copied from the prompt and mostly wrong, so that the cache is rolled back again and again."""
    never = 10 * VOCAB  # transformers 5.4 cannot look prompts up without an end-of-sequence token
    ids = prompt(1, 20).repeat(1, 3)
    return run(model, ids, prompt_lookup_num_tokens=4, max_new_tokens=40, eos_token_id=never)


def one_token(model):
    return run(model, prompt(1, 1), max_new_tokens=48)


def window_edges(model):
    """Lengths around the packing of the first tile: 4 sinks + 8 recent + 32."""
    results = [run(model, prompt(1, length), max_new_tokens=3) for length in (2, 43, 44, 45)]
    return torch.cat([sequences[:, -3:] for sequences, _ in results]), torch.cat([logits for _, logits in results])


def bare_forward(model):
    """No generate: `model(ids)` makes its cache itself, and a second call goes on with it."""
    ids = prompt(2, 66)
    with torch.no_grad():
        first = model(ids[:, :61], use_cache=True)
        second = model(ids[:, 61:], **{CACHE_NAME: first[CACHE_NAME]}, use_cache=True)
    return ids, torch.cat([first.logits, second.logits], dim=1)


def no_cache(model):
    return run(model, prompt(2, 40), use_cache=False, max_new_tokens=3)


BEHAVIOURS = {
    function.__name__: function
    for function in (
        greedy,
        sampling,
        beams,
        left_padding,
        chunked_prefill,
        two_turns,
        prompt_lookup,
        one_token,
        window_edges,
        bare_forward,
        no_cache,
    )
}
