"""`hf-infeco explain`: what a patch would enable on a model, from its config alone."""

import json
import os
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .failing import fail

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_PATH", help="A folder or a name on the Hub.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what patch() would enable on this model, and why not; reads its config, loads no weights."""
    import hf_infeco

    config = _load_config(model)
    try:
        report = hf_infeco.explain(config)
    except (TypeError, ValueError) as error:
        _fail(f"{model}: {error}")
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))


def _load_config(model: str) -> "PreTrainedConfig":
    from transformers import AutoConfig

    if os.path.isabs(model) and not os.path.exists(model):
        _fail(f"{model!r} does not exist")  # transformers would ask the Hub for it
    try:
        # Code from a repository must not run just because somebody asked what a patch would do.
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        _fail(f"{model!r} is not a model that transformers can read: {error}")


def _fail(message: str) -> NoReturn:
    """transformers' own messages run over several lines, the first sentence says it."""
    fail(" ".join(message.split(". ")[0].split()))
