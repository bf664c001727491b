"""
What quantizing costs: right answers, perplexity of real text, and error of every layer's attention.

Prefill attends exactly under InnerQ, so a document is read once, by the dense model, and each cache is then filled
with the same exact keys and values. Documents and windows are done one by one and written down: a run that was cut
off goes on where it was.
"""

import copy
from collections.abc import Iterable
from math import exp
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache, PreTrainedModel

import hf_infeco
from hf_infeco import CACHE_NAME
from hf_infeco.training.testbed.accuracy import Accuracy
from hf_infeco.training.testbed.recall.evaluate import ask
from hf_infeco.training.testbed.recall.needles import question_ids, sample_document
from hf_infeco.training.testbed.recall.text import encode_text, held_out_text

from ..measuring import Progress
from ..s2o.inputs import capture
from .caches import ABLATIONS, BITS, FORMS, MAIN, PEERS, Pair, filled

QUESTIONS_PER_DOCUMENT = 64
QUESTIONS_AT_ONCE = 16  # copies of a cache alive together
CHUNK = 512  # tokens scored at a time: what leaves the exact window is quantized between two chunks
LAST_QUERIES = 32  # of a document, for the error per layer


class Reader:
    """The recall model twice, dense and attending packed caches, with its tokenizer and held-out text."""

    def __init__(self, folder: Path, device: str):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.text = torch.tensor(encode_text(self.tokenizer, held_out_text()))
        self.dense, packed = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().to(device) for _ in range(2)
        )
        self.packed = hf_infeco.patch(packed, s2o=False)

    @torch.no_grad()
    def prefill(self, ids: torch.Tensor) -> list[Pair]:
        """The exact keys and values of `ids [N]`, one pair per layer."""
        cache = DynamicCache(config=self.dense.config)
        self.dense(ids[None].to(self.dense.device), **{CACHE_NAME: cache}, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in cache.layers]


def recall(reader: Reader, seq_len: int, questions: int, ablation_questions: int, progress: Progress) -> list[dict]:
    """
    Right answers at `seq_len` tokens, of `questions` to the main caches and `ablation_questions`, the first ones of
    the same, to the others.
    """
    documents, few = (-(-count // QUESTIONS_PER_DOCUMENT) for count in (questions, ablation_questions))
    correct: dict[str, list[int]] = {}
    for number in tqdm(range(documents), desc=f"recall at {seq_len}", unit="document"):
        makers = MAIN | PEERS | ABLATIONS if number < few else MAIN
        name = f"recall, {seq_len} tokens, document {number}, {len(makers)} caches"
        found = progress.once(name, lambda: _ask_all(reader, seq_len, number, makers))  # noqa: B023 - called at once
        for cache, count in found.items():
            correct.setdefault(cache, []).append(count)
    entries = []
    for cache, counts in correct.items():
        accuracy = Accuracy(sum(counts), len(counts) * QUESTIONS_PER_DOCUMENT)
        asked = {"tokens": seq_len, "correct": accuracy.correct, "total": accuracy.total, "rate": accuracy.rate}
        entries.append({"cache": cache, **asked, "interval_95": list(accuracy.interval)})
    return entries


def _ask_all(reader: Reader, seq_len: int, number: int, makers: dict) -> dict[str, int]:
    """Right answers of each cache to all questions about document `number`."""
    generator = torch.Generator().manual_seed(number)
    needles = sample_document(reader.tokenizer, reader.text, seq_len, QUESTIONS_PER_DOCUMENT, generator)
    exact = reader.prefill(needles.document)
    counts = {}
    for name, make in makers.items():
        cache = filled(make, reader.packed.config, exact)
        counts[name] = 0
        for chosen in torch.arange(QUESTIONS_PER_DOCUMENT).split(QUESTIONS_AT_ONCE):
            if isinstance(cache, hf_infeco.InnerQCache):  # as a user would: copies of the cache, attended packed
                answers = ask(reader.packed, reader.tokenizer, cache, needles.keys[chosen])
            else:
                answers = ask_side_by_side(reader, cache, needles.keys[chosen])
            counts[name] += int((answers == needles.answers[chosen]).all(dim=1).sum())
    return counts


@torch.no_grad()
def ask_side_by_side(reader: Reader, cache: Cache, keys: torch.Tensor) -> torch.Tensor:
    """
    `ask` of the dense model, its answers `[n, 2]` included, as one row of tokens whose mask keeps the `n` questions
    apart: no copies of a large cache, and one matrix product for all of them.
    """
    fork, length, count = copy.deepcopy(cache), cache.get_seq_length(), len(keys)
    questions = torch.stack([question_ids(reader.tokenizer, int(key)) for key in keys])
    of_question = torch.arange(count).repeat_interleave(2)  # which question each token belongs to
    own = of_question[:, None] == of_question
    first = _feed(reader.dense, fork, questions.flatten(), length + torch.arange(2).repeat(count), own.tril())
    first = first.unflatten(0, (count, 2))[:, 1]
    own = torch.cat(
        [torch.eye(count, dtype=torch.bool).repeat_interleave(2, 1), torch.eye(count, dtype=torch.bool)], 1
    )
    second = _feed(reader.dense, fork, first, torch.full((count,), length + 2), own)
    return torch.stack([first, second], 1)


def _feed(model: PreTrainedModel, cache: Cache, ids: torch.Tensor, positions: torch.Tensor, own: torch.Tensor):
    """The likeliest token after each of `ids [n]`, which see the document and, of all since, those in `own [n, m]`."""
    document = torch.ones(len(ids), cache.get_seq_length() + len(ids) - own.shape[1], dtype=torch.bool)
    mask = torch.cat([document, own], 1)[None, None].to(model.device)
    ids, positions = (each[None].to(model.device) for each in (ids, positions))
    out = model(ids, position_ids=positions, attention_mask=mask, **{CACHE_NAME: cache})
    return out.logits[0].argmax(-1).cpu()


def perplexity(reader: Reader, seq_len: int, windows: int, names: Iterable[str], progress: Progress) -> list[dict]:
    """
    Perplexity of the second half of each window of held-out text, which reads what the cache kept of the first half
    and of its own older tokens.
    """
    makers = {name: make for name, make in (MAIN | PEERS | ABLATIONS | FORMS).items() if name in set(names)}
    starts = torch.linspace(0, len(reader.text) - seq_len + 1, windows).long().tolist()
    losses = dict.fromkeys(makers, 0.0)
    for number, start in enumerate(tqdm(starts, desc=f"perplexity at {seq_len}", unit="window")):
        name = f"perplexity, {seq_len} tokens, window {number} of {windows}, {len(makers)} caches"
        found = progress.once(name, lambda: _losses(reader, seq_len, start, makers))  # noqa: B023 - called at once
        for cache, loss in found.items():
            losses[cache] += loss
    scored = windows * (seq_len - seq_len // 2 - 1)
    dense = losses["dense"]
    return [
        {
            "cache": cache,
            "tokens": seq_len,
            "windows": windows,
            "perplexity": exp(loss / scored),
            "over_dense": exp((loss - dense) / scored) - 1,
            **({"bits": BITS[cache]} if cache in BITS else {}),
        }
        for cache, loss in losses.items()
    ]


@torch.no_grad()
def _losses(reader: Reader, seq_len: int, start: int, makers: dict) -> dict[str, float]:
    """Summed negative log-likelihood, in nats, of a window's second half under each cache."""
    bos = torch.tensor([reader.tokenizer.bos_token_id])
    window = torch.cat([bos, reader.text[start : start + seq_len - 1]]).to(reader.dense.device)
    first = seq_len // 2
    exact = reader.prefill(window[:first])
    losses = {}
    for name, make in makers.items():
        cache = filled(make, reader.dense.config, exact)
        losses[name] = sum(
            _score(reader.dense, cache, window[begin : begin + CHUNK + 1])
            for begin in range(first, seq_len - 1, CHUNK)
        )
    return losses


def _score(model: PreTrainedModel, cache, piece: torch.Tensor) -> float:
    """Feeds all but the last of `piece [n + 1]` to the model and scores all but the first."""
    logits = model(piece[None, :-1], **{CACHE_NAME: cache}).logits[0].float()
    return float(torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum"))


@torch.no_grad()
def layer_errors(folder: Path, reader: Reader, seq_len: int) -> list[dict]:
    """Relative L2 error of each layer's attention output for a document's last queries, on exact inputs, float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    document = sample_document(reader.tokenizer, reader.text, seq_len, QUESTIONS_PER_DOCUMENT, generator).document
    heads = capture(model, document[None])
    exact = [(each.key, each.value) for each in heads.values()]
    entries = []
    for name, make in (MAIN | PEERS | ABLATIONS | FORMS).items():
        layers = filled(make, model.config, exact).layers
        errors = []
        for each, layer in zip(heads.values(), layers, strict=True):
            query = each.query[:, :, -LAST_QUERIES:]
            lossy, dense = (_attend(query, *pair) for pair in ((layer.keys, layer.values), (each.key, each.value)))
            errors.append(float((lossy - dense).norm() / dense.norm()))
        entries.append({"cache": name, "tokens": seq_len, "error_by_layer": errors})
    return entries


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of the last `q_len` tokens to all keys."""
    q_len, kv_len = query.shape[2], key.shape[2]
    mask = torch.ones(q_len, kv_len, dtype=torch.bool, device=query.device).tril(kv_len - q_len)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
