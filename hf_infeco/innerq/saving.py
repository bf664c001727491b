"""The file of a saved cache: safetensors, with what it belongs to as JSON in the header, whole or not at all."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import compat

FORMAT = "hf_infeco.InnerQCache"
# Raised when a file changes its meaning: 2 may tell left padding, 3 which tokens were kept, 4 holds norms of values, 5
# may hold rotated keys. The last one is written.
FORMAT_VERSIONS = (1, 2, 3, 4, 5)
HEADER = "innerq"  # key of the JSON among safetensors' metadata

# What two models must share for one's keys to mean anything to the other. Weights are not looked at.
MODEL_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_parameters",
)


def fingerprint(config: Any) -> dict[str, Any]:
    """What a saved cache knows of its model, ready for JSON."""
    values = {name: compat.config_value(config, name) for name in MODEL_FIELDS}
    return json.loads(json.dumps(values, default=str))


def write(path: str | os.PathLike, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Writes next to `path` and renames, so that a crash leaves the old file or none."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "format_version": FORMAT_VERSIONS[-1], "checksum": _checksum(tensors), **header}
    unfinished = Path(f"{os.fspath(path)}.{os.getpid()}.unfinished")
    try:
        save_file(tensors, unfinished, metadata={HEADER: json.dumps(header)})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | os.PathLike, config: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    Inverse of `write`, after checking that the file is whole and belongs to the model of `config`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, no saved cache, of a newer version, or another model's.
    """
    name = f"{os.fspath(path)!r}"
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(name, file.metadata(), config)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except SafetensorError as error:
        raise ValueError(
            f"{name} is damaged, cut short or no safetensors file ({error}). Run the prompt again and save it anew."
        ) from error
    if (found := _checksum(tensors)) != header["checksum"]:
        raise ValueError(
            f"{name} is damaged: its tensors have the checksum {found}, and {header['checksum']} was saved. "
            "Run the prompt again and save it anew."
        )
    return tensors, header


def _header(name: str, metadata: dict[str, str] | None, config: Any) -> dict[str, Any]:
    try:
        header = json.loads((metadata or {})[HEADER])
    except (KeyError, json.JSONDecodeError):
        header = {}
    if header.get("format") != FORMAT:
        raise ValueError(f"{name} is no cache saved with InnerQCache.save().")
    if header["format_version"] not in FORMAT_VERSIONS:
        raise ValueError(
            f"{name} has format version {header['format_version']}, and this hf_infeco reads {FORMAT_VERSIONS}. "
            "Use the hf_infeco that wrote it, or run the prompt again and save it anew."
        )
    here = fingerprint(config)
    if others := {key: value for key, value in header["model"].items() if value != here.get(key)}:
        differences = ", ".join(f"{key}={value} there and {here.get(key)} here" for key, value in others.items())
        raise ValueError(f"{name} is the cache of another model: {differences}. Load it with that model's config.")
    return header


def _checksum(tensors: dict[str, torch.Tensor]) -> int:
    """CRC-32 of all tensors in the order of their names: safetensors does not notice a flipped bit."""
    checksum = 0
    for name in sorted(tensors):
        content = tensors[name].flatten().view(torch.uint8).numpy().data
        checksum = zlib.crc32(content, zlib.crc32(name.encode(), checksum))
    return checksum
