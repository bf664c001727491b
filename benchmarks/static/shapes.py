"""Catalogues that are not spread evenly: a node of very many children, few tokens that most items have, titles."""

from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

import hf_infeco

from ..measuring import MODEL
from .catalogues import LENGTH, PROMPT, TOKENS, row_sets, titles, zipf_catalogue
from .step import milliseconds


def measure_nodes(children: int, vocabularies: tuple[int, ...], beams: int, repeats: int) -> dict[str, Any]:
    """Our processor where every row is at a node of `children` children, at depth 2, beside one fill of its scores."""
    entries = {}
    for vocabulary in vocabularies:
        generator = np.random.default_rng(0)
        below = generator.permutation(vocabulary)[:children, None]
        wide = np.concatenate([np.broadcast_to([5, 6], (children, 2)), below], 1)
        index = hf_infeco.StaticIndex.build(
            np.concatenate([wide, generator.integers(0, vocabulary, (children, 3))]), vocab_size=vocabulary
        )
        calls = _beside_a_fill(index)
        rows = row_sets(wide, beams, repeats)
        milliseconds(calls, rows[:1], 2, vocabulary)  # compiles
        entries[str(vocabulary)] = milliseconds(calls, rows, 2, vocabulary)
    return {"children": children, "milliseconds_by_vocabulary": entries, "times_one_fill": _ratios(entries)}


def measure_catalogues(items: int, count: int, beams: int, repeats: int) -> dict[str, Any]:
    """Our processor at each depth of a Zipf catalogue of `items`, and of `count` titles of many lengths."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    zipf = zipf_catalogue(items)
    texts = hf_infeco.StaticIndex.from_texts(titles(count), tokenizer, eos_token_id=0)
    tokens = texts.sequences(torch.arange(texts.num_sequences)).clamp(min=0).numpy()
    indexes = {
        "Zipf": (hf_infeco.StaticIndex.build(zipf, vocab_size=TOKENS), zipf),
        "titles": (texts, tokens),
    }
    return {
        name: {
            "items": index.num_items,
            "length": index.length,
            "vocabulary": index.vocab_size,
            "most_children": max(index.trie.widths),
            "milliseconds_by_depth": _by_depth(index, rows, beams, repeats),
        }
        for name, (index, rows) in indexes.items()
    }


def _by_depth(index: hf_infeco.StaticIndex, sequences: np.ndarray, beams: int, repeats: int) -> list[float]:
    calls, rows = _beside_a_fill(index), row_sets(sequences, beams, repeats)
    milliseconds(calls, rows[:1], 0, index.vocab_size)  # compiles
    return [milliseconds(calls, rows, depth, index.vocab_size)["processor"] for depth in range(LENGTH)]


def _beside_a_fill(index: hf_infeco.StaticIndex) -> dict[str, Any]:
    ends = 0 if index.is_variable else None
    processor = hf_infeco.StaticLogitsProcessor(index, prompt_length=PROMPT, eos_token_id=ends)
    return {"processor": processor, "fill": lambda ids, scores: scores.fill_(float("-inf"))}


def _ratios(entries: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: round(taken["processor"] / taken["fill"], 2) for name, taken in entries.items()}
