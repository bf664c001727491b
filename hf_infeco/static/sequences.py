"""Reading allowed sequences: an array, ragged lists, or chunks of either become one array and its lengths."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

PADDING = 0  # stands behind the end of a shorter sequence; lengths tell what is read


def as_array(values: Any) -> np.ndarray:
    """What an array, a tensor, a column of a table or a list holds, one value after the other."""
    if isinstance(values, torch.Tensor):
        return values.numpy(force=True)
    if hasattr(values, "to_numpy"):  # a table's own index would be looked up instead of a place
        values = values.to_numpy()
    if isinstance(values, np.ndarray):
        return values
    values = list(values)
    array = np.asarray(values)
    return (
        array if array.dtype.kind in "biu" else np.array(values, dtype=object)
    )  # numpy alters texts and large numbers


def as_tokens(value: Any, name: str) -> list[int]:
    """One token, or several in a list, an array or a tensor; none for None. `name` is what the caller calls them."""
    if value is None:
        return []
    tokens = np.atleast_1d(value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value))
    if tokens.ndim != 1 or (len(tokens) and tokens.dtype.kind not in "iu"):
        raise TypeError(f"{name}={value!r} is no token, and no list of tokens, which are integers.")
    return tokens.tolist()


def read_sequences(sequences: Any, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Sequences in any of the accepted forms, as `(tokens [N, L], lengths [N])`; a chunk is narrowed as soon as it is
    read, so that a long iterator needs little more memory than its tokens.

    Args:
        sequences: 2-D integers (numpy, torch), a list of lists of integers, or an iterator over chunks of either.
        vocab_size (`int`): tokens must lie in `[0, vocab_size)`.

    Raises:
        TypeError: for anything that is no integer.
        ValueError: for tokens out of range, an empty sequence, or none at all.
    """
    if not 1 <= vocab_size <= 2**31:
        raise ValueError(f"vocab_size={vocab_size} must be 1 to 2**31: pass the size of the model's vocabulary.")
    chunks, offset = [], 0
    for chunk in _chunks(sequences):
        tokens, lengths = read_chunk(chunk)
        _check(tokens, lengths, vocab_size, offset)
        chunks.append((tokens.astype(np.uint16 if vocab_size <= 2**16 else np.int32, copy=False), lengths))
        offset += len(tokens)
    if offset == 0:
        raise ValueError("There are no sequences: an index needs at least one.")
    longest = max(tokens.shape[1] for tokens, _ in chunks)
    if len(chunks) == 1:
        return chunks[0]
    # A chunk is dropped once it is copied: both copies together would double the peak.
    lengths = np.concatenate([lengths for _, lengths in chunks])
    merged = np.full((offset, longest), PADDING, dtype=chunks[0][0].dtype)
    while chunks:
        tokens, _ = chunks.pop()
        merged[offset - len(tokens) : offset, : tokens.shape[1]] = tokens
        offset -= len(tokens)
    return merged, lengths


def _chunks(sequences: Any) -> Iterator[Any]:
    if not isinstance(sequences, Iterator):
        return iter([sequences])
    return iter(logging.tqdm(sequences, desc="Reading sequences", unit=" chunks"))


def read_chunk(chunk: Any) -> tuple[np.ndarray, np.ndarray]:
    """One array, or one list of sequences, as tokens `[n, longest]` and lengths `[n]`."""
    if isinstance(chunk, torch.Tensor) or hasattr(chunk, "to_numpy"):
        chunk = as_array(chunk)
    if isinstance(chunk, np.ndarray) and chunk.dtype != object:
        if not np.issubdtype(chunk.dtype, np.integer):
            raise TypeError(f"Sequences are {chunk.dtype}; tokens are integers. Convert them, say with .astype(int).")
        if chunk.ndim != 2:
            raise ValueError(f"Sequences have shape {chunk.shape}; they must be 2-D: one row a sequence.")
        return chunk, np.full(len(chunk), chunk.shape[1], dtype=np.int32)
    return _pad([_read_one(sequence) for sequence in chunk])


def _read_one(sequence: Iterable[int]) -> np.ndarray:
    tokens = np.asarray(sequence.numpy(force=True) if isinstance(sequence, torch.Tensor) else sequence)
    if tokens.ndim != 1:
        raise ValueError(f"{sequence!r} is no sequence of tokens: pass a list of lists, or an iterator over chunks.")
    if len(tokens) and not np.issubdtype(tokens.dtype, np.integer):
        raise TypeError(f"The sequence {sequence!r} holds {tokens.dtype}; tokens are integers.")
    if tokens.dtype == np.uint64 and len(tokens) and tokens.max() >= 2**63:
        raise ValueError(f"The sequence {sequence!r} holds {tokens.max()}, which is no token of any vocabulary.")
    return tokens.astype(np.int64, copy=False)


def _pad(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int32)
    if not len(lengths) or not lengths.max():
        return np.zeros((len(lengths), 0), dtype=np.int64), lengths
    tokens = np.full((len(lengths), lengths.max()), PADDING, dtype=np.int64)
    tokens[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(sequences)
    return tokens, lengths


def _check(tokens: np.ndarray, lengths: np.ndarray, vocab_size: int, offset: int) -> None:
    """Names the first offending row, counted over all chunks."""
    if len(lengths) and lengths.min() == 0:
        raise ValueError(
            f"Sequence {offset + int(lengths.argmin())} is empty; drop it, or give it at least one token."
        )
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocab_size):
        row, column = np.argwhere((tokens < 0) | (tokens >= vocab_size))[0]
        raise ValueError(
            f"Sequence {offset + row} has token {tokens[row, column]} at position {column}; tokens must lie in "
            f"[0, {vocab_size}), the model's vocabulary."
        )
