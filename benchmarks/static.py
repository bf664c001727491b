"""
STATIC's numbers: what a constrained step costs, against what else there is, whole searches, building, and validity.

    python benchmarks/static.py [--parts step wide baselines search build validity] [--items 10000000]

Each part is measured on its own and replaces its entry in benchmarks/results/static.json. Catalogues are random: 8
tokens an item, 2048 on each level; 140 rows are 2 prompts of 70 beams. marisa-trie is compared with if it is there.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrefixConstrainedLogitsProcessor
from transformers.utils import logging

import hf_infeco
from hf_infeco.benchmarks.measuring import median_seconds, results_folder, timed, where

RESULTS = results_folder() / "static.json"
CPU = torch.device("cpu")
TOKENS, LENGTH, BATCH, BEAMS, PROMPT = 2048, 8, 2, 70, 64
ROWS = BATCH * BEAMS
WIDE_VOCABULARY = 151_936
REPEATS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--items", type=int, default=10_000_000, help="of the largest catalogue")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    for part in arguments.parts:
        results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        results[part] = {"where": where("cpu"), **PARTS[part](arguments.items)}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps({part: results[part]}, indent=1))


def catalogue(items: int, first_token: int = 0, tokens: int | None = None) -> np.ndarray:
    """Random items, `[items, LENGTH]`, of `tokens` tokens a level."""
    tokens = tokens or TOKENS
    return np.random.default_rng(0).integers(first_token, first_token + tokens, (items, LENGTH), dtype=np.int32)


def row_sets(sequences: np.ndarray) -> list[torch.Tensor]:
    """Rows at the end of random items behind a prompt; other items each time, which no cache of the machine knows."""
    generator = np.random.default_rng(1)
    chosen = [sequences[generator.integers(0, len(sequences), ROWS)] for _ in range(REPEATS)]
    prompts = torch.ones(ROWS, PROMPT, dtype=torch.int64)
    return [torch.cat([prompts, torch.from_numpy(rows).long()], 1) for rows in chosen]


def milliseconds(
    calls: dict[str, Callable], rows: list[torch.Tensor], depth: int, vocabulary: int
) -> dict[str, float]:
    """Median of one call for all rows, the calls in turn, on the same memory; scores are drawn outside the clock."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    scores = torch.empty(ROWS, vocabulary)
    for ids in rows:
        ids = ids[:, : PROMPT + depth].contiguous()
        for name, call in calls.items():
            scores.normal_()
            taken[name].append(timed(CPU, lambda call=call, ids=ids: call(ids, scores))[0])
    return {name: round(1000 * median(seconds), 4) for name, seconds in taken.items()}


def by_depth(sequences: np.ndarray, vocabulary: int) -> list[float]:
    """Milliseconds of our processor at each depth."""
    index = hf_infeco.StaticIndex.build(sequences, vocab_size=vocabulary)
    calls = {"ours": hf_infeco.StaticLogitsProcessor(index, prompt_length=PROMPT)}
    rows = row_sets(sequences)
    milliseconds(calls, rows[:1], 0, vocabulary)  # compiles
    return [milliseconds(calls, rows, depth, vocabulary)["ours"] for depth in range(LENGTH)]


def step(items: int) -> dict[str, Any]:
    """Our processor at each depth, by the size of the catalogue and by that of the vocabulary."""
    counts = [10**exponent for exponent in range(5, 9) if 10**exponent <= items]
    by_items = {str(count): by_depth(catalogue(count), TOKENS) for count in counts}
    per_depth = list(zip(*by_items.values()))
    return {
        "milliseconds_by_depth": by_items,
        "largest_milliseconds": max(map(max, by_items.values())),
        "slowest_to_fastest_catalogue_by_depth": [round(max(depth) / min(depth), 2) for depth in per_depth],
        "vocabulary_items": min(items, 10**6),
        "milliseconds_by_vocabulary_and_depth": {
            str(size): by_depth(catalogue(min(items, 10**6), tokens=size), size) for size in (256, 2048, 32768)
        },
    }


def wide(items: int) -> dict[str, Any]:
    """Our processor in a vocabulary of 150K, beside one fill of the same scores."""
    sequences = catalogue(min(items, 10**6), WIDE_VOCABULARY - TOKENS)
    index = hf_infeco.StaticIndex.build(sequences, vocab_size=WIDE_VOCABULARY)
    processor = hf_infeco.StaticLogitsProcessor(index, prompt_length=PROMPT)
    rows = row_sets(sequences)
    calls = {"processor": processor, "fill": lambda ids, scores: scores.fill_(float("-inf"))}
    milliseconds(calls, rows[:1], 0, WIDE_VOCABULARY)
    entry = {str(depth): milliseconds(calls, rows, depth, WIDE_VOCABULARY) for depth in (0, 1, 4, 7)}
    ratios = {depth: round(taken["processor"] / taken["fill"], 2) for depth, taken in entry.items()}
    return {"items": len(sequences), "milliseconds_by_depth": entry, "times_one_fill_by_depth": ratios}


def baselines(items: int) -> dict[str, Any]:
    """Transformers' processor over a dict of prefixes or a marisa-trie, and binary search in the sorted array."""
    sequences = catalogue(min(items, 10**6))
    rows = row_sets(sequences)
    makers = {"hf_infeco": ours, "sorted array": binary_search, "dict": dict_trie, "marisa-trie": marisa_trie}
    taken = {}
    for name, make in makers.items():  # one after the other, none in another's way
        if (constraint := make(sequences)) is None:
            continue
        milliseconds({name: constraint}, rows[:1], 0, TOKENS)
        taken[name] = [milliseconds({name: constraint}, rows, depth, TOKENS)[name] for depth in range(LENGTH)]
        del constraint
    return {
        "items": len(sequences),
        "milliseconds_by_depth": taken,
        "times_ours_by_depth": {
            name: [round(theirs / ours, 1) for theirs, ours in zip(taken[name], taken["hf_infeco"])]
            for name in taken
            if name != "hf_infeco"
        },
    }


def ours(sequences: np.ndarray) -> Callable:
    index = hf_infeco.StaticIndex.build(sequences, vocab_size=TOKENS)
    return hf_infeco.StaticLogitsProcessor(index, prompt_length=PROMPT)


def dict_trie(sequences: np.ndarray) -> Callable:
    """Transformers' processor over nested dicts, the usual `prefix_allowed_tokens_fn`."""
    root: dict = {}
    for sequence in sequences.tolist():
        node = root
        for token in sequence:
            node = node.setdefault(token, {})

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        node = root
        for token in ids[PROMPT:].tolist():
            node = node[token]
        return list(node)

    return PrefixConstrainedLogitsProcessor(allowed, num_beams=BEAMS)


def marisa_trie(sequences: np.ndarray) -> Callable | None:
    """The same over marisa-trie, one character a token; the first two levels are kept ready as sets."""
    try:
        from marisa_trie import Trie
    except ModuleNotFoundError:
        return None
    first_character = 0x4E00  # a range without surrogates
    trie = Trie(map("".join, np.vectorize(chr)(sequences + first_character).tolist()))
    first = np.unique(sequences[:, 0]).tolist()
    second = {token: np.unique(sequences[sequences[:, 0] == token, 1]).tolist() for token in first}

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        prefix = ids[PROMPT:].tolist()
        if len(prefix) < 2:
            return second[prefix[0]] if prefix else first
        text = "".join(chr(token + first_character) for token in prefix)
        return list({ord(key[len(text)]) - first_character for key in trie.iterkeys(text)})

    return PrefixConstrainedLogitsProcessor(allowed, num_beams=BEAMS)


def binary_search(sequences: np.ndarray) -> Callable:
    """Exact prefix verification without an index: narrow a range of the sorted array, then try every token in it."""
    ordered = np.asfortranarray(sequences[np.lexsort(sequences.T[::-1])])
    every = np.arange(TOKENS + 1)

    def constrain(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mask = np.full(scores.shape, -np.inf, dtype=np.float32)
        for row, prefix in enumerate(ids[:, PROMPT:].tolist()):
            low, high = 0, len(ordered)
            for level, token in enumerate(prefix):
                low, high = low + np.searchsorted(ordered[low:high, level], [token, token + 1])
            found = np.searchsorted(ordered[low:high, len(prefix)], every)
            mask[row, found[1:] > found[:-1]] = 0
        return scores + torch.from_numpy(mask)

    return constrain


def search(items: int) -> dict[str, Any]:
    """Whole searches with a small model of a 150K vocabulary: unconstrained, with the processor, and our own."""
    sequences = catalogue(min(items, 10**6), WIDE_VOCABULARY - TOKENS)
    index = hf_infeco.StaticIndex.build(sequences, vocab_size=WIDE_VOCABULARY)
    torch.manual_seed(0)
    shape = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4)
    config = LlamaConfig(vocab_size=WIDE_VOCABULARY, num_key_value_heads=2, eos_token_id=None, pad_token_id=0, **shape)
    model = LlamaForCausalLM(config).eval()
    inputs = torch.randint(1, WIDE_VOCABULARY - TOKENS, (BATCH, PROMPT))

    def generate(**settings: Any) -> Any:
        beams = dict(num_beams=BEAMS, num_return_sequences=BEAMS, length_penalty=0.0, do_sample=False)
        mask = torch.ones_like(inputs)
        return model.generate(inputs, attention_mask=mask, max_new_tokens=LENGTH, **beams, **settings)

    def constrained() -> Any:
        processor = hf_infeco.StaticLogitsProcessor(index, prompt_length=PROMPT)
        return generate(logits_processor=[processor], return_dict_in_generate=True, output_scores=True)

    def searched(normalize: str) -> Any:
        return hf_infeco.constrained_beam_search(model, inputs, index, BEAMS, normalize=normalize)

    calls = {
        "transformers, unconstrained": generate,
        "transformers, our processor": constrained,
        "constrained_beam_search": lambda: searched("vocabulary"),
        "constrained_beam_search, normalize='level'": lambda: searched("level"),
    }
    for call in calls.values():
        call()
    seconds = median_seconds(CPU, calls, 3)
    right, mine = constrained(), searched("vocabulary")
    difference = (right.sequences_scores.view(BATCH, -1) - mine.scores).abs()
    return {
        "items": len(sequences),
        "model": {"parameters": model.num_parameters(), **shape},
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "same_sequences": torch.equal(index.lookup(right.sequences[:, PROMPT:]).view(BATCH, -1), mine.ranks),
        "largest_score_difference": float(difference.max()),
        "largest_relative_score_difference": float((difference / mine.scores.abs()).max()),
        "times_faster_than_unconstrained": {
            name: round(seconds["transformers, unconstrained"] / value, 2) for name, value in seconds.items()
        },
    }


def build(items: int) -> dict[str, Any]:
    """Building, saving and loading, each in a process of its own, whose peak memory counts."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1, None, (), 1) as pool:
        return pool.apply(build_and_save, (items, folder)) | pool.apply(load, (folder,))


def build_and_save(items: int, folder: str) -> dict[str, Any]:
    sequences = catalogue(items)
    before = peak_megabytes()
    seconds, index = timed(CPU, lambda: hf_infeco.StaticIndex.build(sequences, vocab_size=TOKENS))
    peak = peak_megabytes()
    about = index.describe()
    return {
        "items": items,
        "build_seconds": round(seconds, 2),
        "peak_megabytes": peak,
        "peak_megabytes_before": before,  # Python, torch, and the sequences as they came in
        "bytes_per_sequence": about["bytes_per_sequence"],
        "save_seconds": round(timed(CPU, lambda: index.save_pretrained(folder))[0], 2),
        "file_megabytes": round(sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6, 1),
    }


def peak_megabytes() -> int:
    """Most memory that this process had; getrusage would tell its parent's, where that had more."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def load(folder: str) -> dict[str, Any]:
    seconds, index = timed(CPU, lambda: hf_infeco.StaticIndex.from_pretrained(folder))
    processor = hf_infeco.StaticLogitsProcessor(index, prompt_length=1)
    scores = torch.zeros(1, TOKENS)
    first_step = timed(CPU, lambda: processor(torch.ones(1, 1, dtype=torch.int64), scores))[0]
    return {"load_seconds": round(seconds, 4), "first_step_seconds": round(first_step, 3)}


def validity(items: int, catalogues: int = 100, prompts: int = 16) -> dict[str, Any]:
    """Beams over small catalogues, also of several lengths and skewed: members, and equal to transformers' own."""
    torch.manual_seed(0)
    vocabulary, end = 256, 2
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2)
    config = LlamaConfig(vocab_size=vocabulary, initializer_range=0.15, eos_token_id=end, pad_token_id=0, **shape)
    model = LlamaForCausalLM(config).eval()
    counts = {"beams": 0, "members": 0, "same_as_transformers": 0}
    for seed in range(catalogues):
        generator = np.random.default_rng(seed)
        lengths = generator.integers(1, 6, 500) if seed % 2 else np.full(500, 4)
        draw = [
            generator.geometric(0.1, size) if seed % 4 > 1 else generator.integers(0, 99, size) for size in lengths
        ]
        sequences = [(3 + tokens % 200).tolist() for tokens in draw]
        sequences += sequences[:50]
        index = hf_infeco.StaticIndex.build(sequences, vocab_size=vocabulary)
        processor = hf_infeco.StaticLogitsProcessor(index, prompt_length=4, eos_token_id=end)
        follows: dict[tuple, set] = {}
        for tokens in map(tuple, sequences):
            for at in range(len(tokens)):
                follows.setdefault(tokens[:at], set()).add(tokens[at])
            follows.setdefault(tokens, set()).add(end)

        def allowed(batch: int, ids: torch.Tensor, follows: dict = follows) -> list[int]:
            return sorted(follows.get(tuple(ids[4:].tolist()), {0, end}))

        ids = torch.randint(210, vocabulary, (prompts, 4), generator=torch.Generator().manual_seed(seed))
        beams = dict(num_beams=BEAMS, num_return_sequences=BEAMS, length_penalty=0.0, do_sample=False)
        settings = dict(max_new_tokens=6, return_dict_in_generate=True, output_scores=True, **beams)
        got, expected = (
            model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **how)
            for how in (dict(logits_processor=[processor]), dict(prefix_allowed_tokens_fn=allowed))
        )
        whole = set(map(tuple, sequences))
        rows = [row[: row.index(end)] if end in row else row for row in got.sequences[:, 4:].tolist()]
        same = (got.sequences == expected.sequences).all(1) & (got.sequences_scores == expected.sequences_scores)
        counts["beams"] += len(rows)
        counts["members"] += sum(tuple(token for token in row if token) in whole for row in rows)
        counts["same_as_transformers"] += int(same.sum())
    return {"catalogues": catalogues, **counts}


PARTS = {
    "step": step,
    "wide": wide,
    "baselines": baselines,
    "search": search,
    "build": build,
    "validity": validity,
}

if __name__ == "__main__":
    main()
