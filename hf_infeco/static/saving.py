"""
Saving an index: one safetensors file, mapped into memory when read, that says itself what is in it.

A JSON file beside it says the same to people. Both are written under other names first, so that whoever reads finds
a whole file, and files of two indexes are told by what they say.
"""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils.hub import PushToHubMixin

from ..kernels.static.reference import Trie
from .items import ItemIds
from .structure import find_misfits

TENSORS_NAME = "static_index.safetensors"
JSON_NAME = "static_index.json"
HEADER = "static_index"  # its entry in the metadata of the tensors' file
ATTEMPTS, PAUSE = 50, 0.002  # to read files that somebody is just replacing, and the seconds in between
FORMAT_VERSION = 2  # raised when the files change their meaning, so that an older library can say so


class Saved(PushToHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of a `StaticIndex`."""

    vocab_size: int
    trie: Trie
    item_ids: ItemIds | None
    eligible: torch.Tensor | None

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """
        Writes the index into `save_directory`, where a reader finds the old one until the new one is whole;
        `push_to_hub=True` uploads it too (`repo_id=` as a keyword).
        """
        tensors = dict(zip(Trie._fields[:-1], self.trie[:-1], strict=True)) | {"eligible": self.eligible}
        if self.item_ids is not None:
            tensors |= {f"item_{name}": tensor for name, tensor in self.item_ids._asdict().items()}
        there = {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
        about = json.dumps({"format_version": FORMAT_VERSION, "widths": self.trie.widths, **self.describe()}, indent=2)
        os.makedirs(save_directory, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=save_directory, prefix=".saving-") as unfinished:
            save_file(there, os.path.join(unfinished, TENSORS_NAME), metadata={HEADER: about})
            Path(unfinished, JSON_NAME).write_text(about + "\n", encoding="utf-8")
            shutil.copymode(
                *(os.path.join(unfinished, name) for name in (JSON_NAME, TENSORS_NAME))
            )  # safetensors lets nobody else read
            for name in (TENSORS_NAME, JSON_NAME):
                os.replace(os.path.join(unfinished, name), os.path.join(save_directory, name))
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
            FileNotFoundError: if there is no such folder and no such repository, or no index in it.
            ValueError: if the files were cut off, do not belong together, or are of a format that this hf_infeco does
                not know.
        """
        path = _locate(path_or_repo, hub_kwargs)
        about, tensors = _read(path)
        parts: dict[str, Any] = {name: tensors.get(name) for name in Trie._fields[:-1]}
        trie = Trie(**parts, widths=tuple(about["widths"]))
        ids = None
        if "item_begin" in tensors:
            items: dict[str, Any] = {name: tensors.get(f"item_{name}") for name in ItemIds._fields}
            ids = ItemIds(**items)
        index = cls(about["vocab_size"], trie, ids, tensors.get("eligible"))
        if misfit := next(find_misfits(index.vocab_size, trie, ids, index.eligible), None):
            raise ValueError(f"{path} is damaged: {misfit}. Build and save the index again.")
        index.__dict__["fingerprint"] = about["fingerprint"]  # hashing would read the whole file; `check` does so
        return index


def _read(path: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a file says about its index, and its tensors; tried again if the files were replaced meanwhile."""
    fault: ValueError | None = None
    for _ in range(ATTEMPTS):
        before = _stamp(path)
        try:
            about, tensors = _read_once(path)
            _compare_with_copy(path, about)
            # safetensors opens the file by its name twice, for what it says and for its tensors.
            if _stamp(path) == before:
                return about, tensors
        except ValueError as error:
            fault = error
        time.sleep(PAUSE)
    raise fault or ValueError(f"{path} is replaced again and again; load it when it is whole.")


def _stamp(path: str) -> tuple[int, int, int]:
    """Tells a file from the one that replaced it."""
    about = os.stat(path)
    return about.st_ino, about.st_mtime_ns, about.st_size


def _read_once(path: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} is cut off, or no safetensors file ({error}); save the index again.") from error
    about = {"format_version": 1} if header is None else json.loads(header)
    if about["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"This index has format version {about['format_version']}, the newest this hf_infeco knows is "
            f"{FORMAT_VERSION}: upgrade hf_infeco, or build the index again."
        )
    if about["format_version"] < FORMAT_VERSION:
        raise ValueError(
            f"{path} was saved by an older hf_infeco, whose files did not say whether they belong together: build the "
            "index again."
        )
    return about, tensors


def _compare_with_copy(path: str, about: dict[str, Any]) -> None:
    """The JSON file is not needed, but where it speaks of another index, somebody meant another one."""
    copy = Path(path).with_name(JSON_NAME)
    if not copy.is_file():
        return
    try:
        same = json.loads(copy.read_text(encoding="utf-8")) == about
    except ValueError:
        same = False
    if not same:
        raise ValueError(
            f"{copy} does not describe the index in {path}, whose fingerprint is {about['fingerprint']}: one of the "
            "files was changed, or is just being replaced. Load again if it is, or else save the index again."
        )


def _locate(path_or_repo: str | os.PathLike, hub_kwargs: dict[str, Any]) -> str:
    path = os.path.join(path_or_repo, TENSORS_NAME)
    if os.path.isfile(path):
        return path
    if os.path.isdir(path_or_repo):
        raise FileNotFoundError(
            f"No {TENSORS_NAME} in {os.fspath(path_or_repo)!r}; save an index with save_pretrained()."
        )
    try:
        return hf_hub_download(os.fspath(path_or_repo), TENSORS_NAME, **hub_kwargs)
    except (HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"{os.fspath(path_or_repo)!r} is no folder here, and no index could be fetched from the Hub by that name "
            f"({str(error).splitlines()[0]})"
        ) from error
