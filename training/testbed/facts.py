"""What is written beside a trained model: how it was trained, with what, and on top of what."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

import hf_infeco


def write_training(folder: Path, facts: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Writes `training.json`: the facts, the versions of what they depend on, and the device. Returns all of it."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    facts = {**facts, **versions, "device": hf_infeco.describe_device(device)}
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def call_base(folder: Path, name: str) -> None:
    """Has the adapter in `folder` call its base model by this name, whatever its path on this machine was."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": name}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
