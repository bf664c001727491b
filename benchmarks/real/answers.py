"""Greedy answers to a request about a text: how far the answer of each way is that of the dense model."""

import torch
from tqdm import tqdm

from ..measuring import Progress
from .reader import Reader
from .ways import Way

REQUEST = "Say in two sentences what the text above is about."


def measure_answers(
    reader: Reader, ways: dict[str, Way], seq_len: int, texts: int, new_tokens: int, progress: Progress
) -> list[dict]:
    """One entry per way: answers equal to the dense ones, and equal tokens before the first other one."""
    equal: dict[str, list[int]] = {name: [] for name in ways}
    for number, ids in enumerate(tqdm(reader.windows(seq_len, texts), desc="answers", unit="text")):
        name = f"{seq_len} tokens, text {number} of {texts}, {new_tokens} new, {', '.join(ways)}"
        found = progress.once(name, lambda: _equal_tokens(reader, ways, ids, new_tokens))  # noqa: B023 - called at once
        for way, count in found.items():
            equal[way].append(count)
    return [
        {"way": way, "tokens": seq_len, "texts": texts, "new_tokens": new_tokens}
        | {"equal_answers": counts.count(new_tokens), "equal_tokens": sum(counts) / texts}
        for way, counts in equal.items()
    ]


def _equal_tokens(reader: Reader, ways: dict[str, Way], ids: torch.Tensor, new_tokens: int) -> dict[str, int]:
    """Of each way, how many tokens its answer begins with as the dense one does."""
    prompt, request = _chat(reader, ids)
    exact = reader.read_by_each(ways, prompt)
    answer = _dense_answer(reader, ways["dense"].kept(exact["dense"], reader.model.config), request, new_tokens)
    found = {}
    for name, way in ways.items():
        cache = way.kept(exact[name], reader.model.config)
        # In pieces that InnerQ attends packed. A greedy answer differs where the likeliest token first does.
        logits = reader.go_on(way, cache, torch.cat([request, answer[:-1]]), piece=16)[len(request) - 1 :]
        found[name] = int((logits.argmax(-1) == answer).long().cumprod(0).sum())
    return found


def _chat(reader: Reader, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompt up to the end of the text, and the request behind it with what the model's answer begins after."""
    text = reader.tokenizer.decode(ids[len(reader.start) :])
    if reader.tokenizer.chat_template is None:
        return ids, reader.prompt(reader.encode(f"\n\n{REQUEST}\n\n"))[len(reader.start) :]
    turns = [{"role": "user", "content": f"{text}\n\n{REQUEST}"}]
    chat = reader.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    before, after = chat.split(REQUEST)
    device = ids.device
    return tuple(torch.tensor(reader.encode(part), device=device) for part in (before, REQUEST + after))


def _dense_answer(reader: Reader, cache, request: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """Greedy, `new_tokens` whatever they are: what comes after an end of text is compared like the rest."""
    answer = []
    ids = request
    for _ in range(new_tokens):
        ids = reader.go_on(Way(), cache, ids, len(ids))[-1:].argmax(-1)
        answer.append(ids)
    return torch.cat(answer)
