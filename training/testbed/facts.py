"""What is written beside a trained model: how it was trained, and with what."""

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
