"""Real text: how well the model goes on with it through the cache of what it has read, and how far from dense."""

from math import exp, expm1, sqrt

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ..innerq.sizes import nbytes
from ..measuring import Progress
from .reader import Reader
from .ways import Way

ROWS = 256  # whose probabilities are in float32 together


def measure_chunks(reader: Reader, ways: dict[str, Way], windows: dict[int, int], progress: Progress) -> list[dict]:
    """The second half of each window in one forward, behind the first. `windows` says how many of each length."""
    return [
        {"fed": "two chunks", "tokens": seq_len} | entry
        for seq_len, count in windows.items()
        for entry in _measure(reader, ways, seq_len, count, seq_len // 2, seq_len // 2, progress)
    ]


def measure_steps(
    reader: Reader, ways: dict[str, Way], windows: dict[int, int], steps: int, progress: Progress
) -> list[dict]:
    """The last `steps` tokens of each window, one at a time: what InnerQ attends packed."""
    return [
        {"fed": "token by token", "tokens": seq_len} | entry
        for seq_len, count in windows.items()
        for entry in _measure(reader, ways, seq_len, count, seq_len - steps, 1, progress)
    ]


def _measure(
    reader: Reader, ways: dict[str, Way], seq_len: int, count: int, first: int, piece: int, progress: Progress
) -> list[dict]:
    """One entry per way: `windows` of `seq_len` tokens, of which the first `first` are a prompt."""
    sums: dict[str, dict[str, float]] = {}
    windows = reader.windows(seq_len, count)
    for number, ids in enumerate(tqdm(windows, desc=f"text of {seq_len}, {piece} at a time", unit="window")):
        name = f"{seq_len} tokens, window {number} of {count}, {piece} at a time, {', '.join(ways)}"
        found = progress.once(name, lambda: _compare_all(reader, ways, ids, first, piece))  # noqa: B023 - called at once
        for way, values in found.items():
            before = sums.setdefault(way, dict.fromkeys(values, 0.0))
            sums[way] = {key: before[key] + value for key, value in values.items()}
    return [
        {"way": name, "bits": ways[name].bits, **means(each), "of_dense_bytes": each["bytes"] / each["dense_bytes"]}
        for name, each in sums.items()
    ]


def means(sums: dict[str, float]) -> dict[str, float]:
    """Of the sums of `compare`, per scored token; `error` is one standard error of `over_dense`, paired by token."""
    scored = sums["scored"]
    change = (sums["loss"] - sums["dense_loss"]) / scored
    return {
        "scored": int(scored),
        "perplexity": exp(sums["loss"] / scored),
        "over_dense": expm1(change),
        "error": sqrt(max(sums["squares"] / scored - change**2, 0) / scored),
        "kl": sums["kl"] / scored,
        "same_first": sums["same"] / scored,
    }


def _compare_all(
    reader: Reader, ways: dict[str, Way], ids: torch.Tensor, first: int, piece: int
) -> dict[str, dict[str, float]]:
    exact = reader.read_by_each(ways, ids[:first])
    found, dense, dense_bytes = {}, None, 0
    for name, way in ways.items():
        cache = way.kept(exact[name], reader.model.config)
        logits = reader.go_on(way, cache, ids[first:], piece)[:-1]
        size = nbytes(cache)
        if dense is None:  # the first way is the one that the others are compared with
            dense, dense_bytes = logits, size
        found[name] = compare(logits, dense, ids[first + 1 :]) | {"bytes": size, "dense_bytes": dense_bytes}
    return found


def compare(logits: torch.Tensor, dense: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """
    Sums over the rows of `logits` and `dense` `[m, V]`: negative log-likelihood of `targets [m]` in nats, for both,
    and the squares of the difference, KL divergence from dense, and rows whose likeliest token is that of dense.
    """
    sums = {"loss": 0.0, "dense_loss": 0.0, "squares": 0.0, "kl": 0.0, "same": 0.0, "scored": len(targets)}
    for ours, exact, target in zip(logits.split(ROWS), dense.split(ROWS), targets.split(ROWS)):
        ours, exact = ours.float(), exact.float()
        losses = [cross_entropy(rows, target, reduction="none").double() for rows in (ours, exact)]
        log_p, log_q = exact.log_softmax(-1), ours.log_softmax(-1)
        sums["loss"] += float(losses[0].sum())
        sums["dense_loss"] += float(losses[1].sum())
        sums["squares"] += float((losses[0] - losses[1]).square().sum())
        sums["kl"] += float((log_p.exp() * (log_p - log_q)).sum())
        sums["same"] += int((ours.argmax(-1) == exact.argmax(-1)).sum())
    return sums
