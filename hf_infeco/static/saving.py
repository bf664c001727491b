"""Saving an index: one safetensors file, mapped into memory when read, and one JSON file that says what is in it."""

import json
import os
from typing import Any, Self

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import PushToHubMixin

from ..kernels.static.reference import Trie
from .items import ItemIds

TENSORS_NAME = "static_index.safetensors"
JSON_NAME = "static_index.json"
FORMAT_VERSION = 1  # raised when the files change their meaning, so that an older library can say so


class Saved(PushToHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of a `StaticIndex`."""

    vocab_size: int
    trie: Trie
    item_ids: ItemIds | None
    eligible: torch.Tensor | None

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes the index into `save_directory`; `push_to_hub=True` uploads it too (`repo_id=` as a keyword)."""
        os.makedirs(save_directory, exist_ok=True)
        tensors = dict(zip(Trie._fields[:-1], self.trie[:-1], strict=True)) | {"eligible": self.eligible}
        if self.item_ids is not None:
            tensors |= {f"item_{name}": tensor for name, tensor in self.item_ids._asdict().items()}
        there = {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
        save_file(there, os.path.join(save_directory, TENSORS_NAME))
        about = {"format_version": FORMAT_VERSION, "widths": self.trie.widths, **self.describe()}
        with open(os.path.join(save_directory, JSON_NAME), "w", encoding="utf-8") as file:
            file.write(json.dumps(about, indent=2) + "\n")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **kwargs)

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike, **hub_kwargs: Any) -> Self:
        """
        Maps a saved index into memory; pages are read when they are needed, and shared between processes.

        Args:
            path_or_repo: a folder, or a repository on the Hub; `hub_kwargs` go to `hf_hub_download`.

        Raises:
            FileNotFoundError: if the folder holds no index.
            ValueError: if a newer hf_infeco wrote it, in a format that this one does not know.
        """
        json_path, tensors_path = (_locate(path_or_repo, name, hub_kwargs) for name in (JSON_NAME, TENSORS_NAME))
        with open(json_path, encoding="utf-8") as file:
            about = json.load(file)
        if about["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"This index has format version {about['format_version']}, the newest this hf_infeco knows is "
                f"{FORMAT_VERSION}: upgrade hf_infeco, or build the index again."
            )
        with safe_open(tensors_path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        trie = Trie(*(tensors.get(name) for name in Trie._fields[:-1]), tuple(about["widths"]))
        ids = None
        if "item_begin" in tensors:
            ids = ItemIds(*(tensors.get(f"item_{name}") for name in ItemIds._fields))
        index = cls(about["vocab_size"], trie, ids, tensors.get("eligible"))
        index.__dict__["fingerprint"] = about["fingerprint"]  # hashing would read the whole file; `check` does so
        return index


def _locate(path_or_repo: str | os.PathLike, name: str, hub_kwargs: dict[str, Any]) -> str:
    path = os.path.join(path_or_repo, name)
    if os.path.isfile(path):
        return path
    if os.path.isdir(path_or_repo):
        raise FileNotFoundError(f"No {name} in {os.fspath(path_or_repo)!r}; save an index with save_pretrained().")
    return hf_hub_download(os.fspath(path_or_repo), name, **hub_kwargs)
