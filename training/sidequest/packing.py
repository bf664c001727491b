"""
A trace and all its side threads in one row: the main thread first, then each side thread as a private suffix.

A side thread has the positions behind its fork, as in a session, and sees by the mask what was open there. Main tokens
see no cursor that was closed when they were read. So one forward gives what a session would compute in many.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_infeco.sidequest import CursorMap, ToolFormat

from .rollouts import written
from .samples import Trace

NEVER = 1 << 30


@dataclass(frozen=True)
class PackedTrace:
    """
    Attributes:
        ids, positions: int64 `[T]`.
        sees: bool `[T, T]`, which tokens (columns) each token (rows) sees.
        targets: int64 `[T]`, the token itself where a side thread should write it, else -100.
        main: number of tokens of the main thread.
        spoken: int64 `[n]`, indices of the tokens that the main thread wrote.
    """

    ids: Tensor
    positions: Tensor
    sees: Tensor
    targets: Tensor
    main: int
    spoken: Tensor


def pack(tokenizer: PreTrainedTokenizerBase, trace: Trace, trigger: str, tool_format: ToolFormat) -> PackedTrace:
    """One row of a trace's main thread and its side threads."""
    cursors = CursorMap.from_messages(tokenizer, trace.messages, tool_format=tool_format)
    chat = cursors.chat
    main = len(cursors.ids)
    closed = torch.full((main,), NEVER)  # turn from which on each token is hidden
    for cursor, (begin, end) in cursors.spans.items():
        if trace.closed[cursor] >= 0:
            closed[begin:end] = trace.closed[cursor]
    place = torch.arange(main)
    turn = torch.bucketize(place, torch.tensor(cursors.boundaries), right=True) - 1  # -1 in the prompt
    ids, positions, targets = list(cursors.ids), list(range(main)), [-100] * main
    blocks = []  # of each side thread, what it sees of the main thread and how long it is
    end_of_turn = chat.end_of_turn[:1]
    prompt = chat.trigger(trigger)
    for sample in trace.samples:
        said = chat.said(sample.target) + end_of_turn
        fork = cursors.boundaries[sample.turn]
        ids += prompt + said
        positions += range(fork, fork + len(prompt) + len(said))
        targets += [-100] * len(prompt) + said
        blocks.append(((place < fork) & (closed > sample.turn), len(prompt) + len(said)))
    sees = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    # A token of a closed cursor still sees the cursor, since it was read before that was closed.
    sees[:main, :main] = (place[:, None] >= place) & (closed > turn[:, None])
    at = main
    for seen, length in blocks:
        sees[at : at + length, :main] = seen
        sees[at : at + length, at : at + length] = torch.ones(length, length, dtype=torch.bool).tril()
        at += length
    columns = (torch.tensor(column) for column in (ids, positions))
    return PackedTrace(*columns, sees, torch.tensor(targets), main, torch.tensor(written(cursors)))
