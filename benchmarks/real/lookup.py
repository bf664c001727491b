"""What a model finds again: one passkey in filler, or each of several pairs of name and code in real text."""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from tqdm import tqdm

from hf_infeco.training.testbed.accuracy import Accuracy

from ..measuring import Progress
from .reader import Reader
from .ways import Way

FILLER = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NAMES = ("garden", "library", "kitchen", "harbour", "station", "museum", "bakery", "castle")


class Document(NamedTuple):
    """A prompt, and questions about it, each asked as if it were the only one."""

    ids: torch.Tensor  # [n]
    questions: list[tuple[list[int], list[int]]]  # what is asked, and the right answer


def passkey(reader: Reader, seq_len: int, number: int) -> Document:
    """One code of five digits, said once in filler."""
    rng = random.Random(number)
    code = _code(rng)
    filler = reader.encode(FILLER * (seq_len // 16))
    needle = f" The pass key is {code}. Remember it."
    return _document(reader, seq_len, rng, filler, [needle], [(" What is the pass key? The pass key is", code)])


def pairs(reader: Reader, seq_len: int, number: int) -> Document:
    """A code of five digits for each of `NAMES`, each said once, at random places of real text; all are asked for."""
    rng = random.Random(number)
    codes = {name: _code(rng) for name in rng.sample(NAMES, len(NAMES))}
    needles = [f" The code of the {name} is {code}." for name, code in codes.items()]
    question = "\n\nQuestion: what is the code of the {0}? The code of the {0} is"
    start = rng.randrange(len(reader.text) - seq_len)
    text = reader.text[start : start + seq_len].tolist()
    return _document(
        reader, seq_len, rng, text, needles, [(question.format(name), code) for name, code in codes.items()]
    )


def _code(rng: random.Random) -> str:
    return str(rng.randrange(10_000, 100_000))


def _document(
    reader: Reader, seq_len: int, rng: random.Random, text: list[int], needles: list[str], asked: list[tuple[str, str]]
) -> Document:
    """`needles` between the first and the last tenth of `text`, cut so that the document has `seq_len` tokens."""
    hidden = [reader.encode(needle) for needle in needles]
    room = seq_len - len(reader.start) - sum(map(len, hidden))
    places = sorted(rng.randrange(room // 10, room - room // 10) for _ in hidden)
    ids, before = [], 0
    for place, needle in zip(places, hidden):
        ids += [*text[before:place], *needle]
        before = place
    questions = [(reader.encode(question), reader.encode(f" {answer}")) for question, answer in asked]
    return Document(reader.prompt(ids + text[before:room]), questions)


TASKS: dict[str, Callable[[Reader, int, int], Document]] = {"passkey": passkey, "pairs": pairs}


def measure_lookup(
    reader: Reader, ways: dict[str, Way], documents: dict[tuple[str, int], int], progress: Progress
) -> list[dict]:
    """One entry per way, and per task and length of `documents`, which says how many."""
    entries = []
    for (task, seq_len), count in documents.items():
        right: dict[str, list[bool]] = {name: [] for name in ways}
        for number in tqdm(range(count), desc=f"{task} at {seq_len}", unit="document"):
            name = f"{task}, {seq_len} tokens, document {number}, {', '.join(ways)}"
            document = TASKS[task](reader, seq_len, number)
            for way, found in progress.once(name, lambda: _ask(reader, ways, document)).items():  # noqa: B023 - called at once
                right[way] += found
        for way, found in right.items():
            accuracy = Accuracy(sum(found), len(found))
            both = sum(one and other for one, other in zip(found, right["dense"]))
            entry = {"task": task, "tokens": seq_len, "way": way, "bits": ways[way].bits}
            entry |= {"correct": accuracy.correct, "total": accuracy.total, "interval_95": list(accuracy.interval)}
            entries.append(entry | {"right_in_both": both, "right_in_dense": sum(right["dense"])})
    return entries


def _ask(reader: Reader, ways: dict[str, Way], document: Document) -> dict[str, list[bool]]:
    exact = reader.read_by_each(ways, document.ids)
    found = {}
    for name, way in ways.items():
        found[name] = []
        for question, answer in document.questions:
            cache = way.kept(exact[name], reader.model.config)
            found[name].append(is_greedy(reader, way, cache, question, answer))
    return found


def is_greedy(reader: Reader, way: Way, cache, question: list[int], answer: list[int]) -> bool:
    """
    Whether greedy decoding answers so: each token of `answer` is the likeliest behind those before it. One forward
    tells, few enough tokens for InnerQ to attend them packed.
    """
    ids = torch.tensor([*question, *answer[:-1]], device=reader.model.device)
    likeliest = reader.go_on(way, cache, ids, len(ids))[len(question) - 1 :].argmax(-1)
    return likeliest.tolist() == answer
