"""What every benchmark shares: the machine it ran on, how it takes time, where its results go."""

import datetime
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_infeco.kernels.devices import describe_device

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "examples" / "models"
MODEL = MODELS / "recall"
# The shape of Llama-3.1-8B, for models with random weights on GPUs.
LLAMA_8B: dict[str, Any] = dict(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131_072,
)


def bundled_model(name: str, folder: str | None = None) -> Path:
    """The folder of a model of examples/models, the bundled one by default."""
    model = Path(folder or MODELS / name)
    if not (model / "config.json").is_file():
        raise ValueError(
            f"There is no model in {model}. The bundled one lies in the repository's examples/models/{name}: run from "
            "a clone, or name a copy of that folder with --model."
        )
    return model


def results_folder() -> Path:
    """`benchmarks/results/` of the repository; the working folder where hf_infeco was installed without it."""
    folder = ROOT / "benchmarks" / "results"
    return folder if folder.is_dir() else Path.cwd()


def results_file(system: str, is_full: bool) -> Path:
    """Where a benchmark writes by default: less than all that it measures goes among the temporary files."""
    return (results_folder() if is_full else Path(tempfile.gettempdir())) / f"{system}.json"


def read_results(path: Path) -> dict[str, Any]:
    """What a file of results holds; nothing yet, if there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write_part(path: Path, part: str, measured: dict[str, Any]) -> None:
    """Replaces one part of a file of results, read anew: another run may have measured another part meanwhile."""
    path.write_text(json.dumps(read_results(path) | {part: measured}, indent=1) + "\n")


class Progress:
    """Finished pieces by name, in a JSON file: what was measured before is not measured again."""

    def __init__(self, path: Path):
        self.path = path
        self.pieces = json.loads(path.read_text()) if path.is_file() else {}

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        if name not in self.pieces:
            self.pieces[name] = measure()
            self.path.write_text(json.dumps(self.pieces))
        return self.pieces[name]


def rounded(value: Any) -> Any:
    """Floats to six significant digits, wherever they are: more would only be noise in the file's history."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list | tuple) else value


def where(device: str) -> dict[str, Any]:
    """Date, device, commit and versions of a measurement."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": describe_device(torch.device(device)),
        "commit": _commit(),
        **{name: version(name) for name in ("hf_infeco", "torch", "transformers")},
    }


def _commit() -> str | None:
    """None without a checkout: git would otherwise name the commit of whatever repository the install lies in."""
    if not (ROOT / ".git").exists():
        return None
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip()


def timed(device: torch.device, function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `function()` takes, and its result."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    result = function()
    synchronize()
    return time.perf_counter() - start, result


def median_seconds(device: torch.device, functions: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """Median seconds of each function. They run in turn: what slows the machine for a while slows all of them."""
    rounds = [{name: timed(device, run)[0] for name, run in functions.items()} for _ in range(repeats)]
    return {name: median(taken[name] for taken in rounds) for name in functions}
