"""`hf-infeco profile`: measure a model on this device, or estimate another one, for the serving simulator."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .failing import failures_told


def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_PATH", help="A folder or a name on the Hub.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the profile.")],
    widths: Annotated[str, typer.Option(help="Tensor parallel widths, apart by commas.")] = "1",
    patched: Annotated[bool, typer.Option("--patch", help="Measure the model as patch() leaves it.")] = False,
    device: Annotated[
        str | None, typer.Option(help="Estimate this device by a roofline, and measure nothing.")
    ] = None,
    aic: Annotated[str | None, typer.Option(help="Take this system's tables from aiconfigurator-core.")] = None,
    devices: Annotated[Path | None, typer.Option(help="YAML with devices of your own.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Of a step.")] = 1024,
    max_kv: Annotated[int, typer.Option(help="Tokens in the cache.")] = 4096,
    max_seqs: Annotated[int, typer.Option(help="Sequences that decode together.")] = 16,
) -> None:
    """Write the tables that simulate and plan read; a run that was cut off goes on where it was."""
    with failures_told("sim"):
        shared = tuple(int(width) for width in widths.split(","))
        if aic is not None:
            from ..servesim.aic import write_aic

            write_aic(model, aic, out, shared)
        elif device is not None:
            from ..servesim.roofline import find_device, write_roofline
            from ..servesim.shape import ModelShape

            write_roofline(ModelShape.read(model), find_device(device, devices), device, out, shared)
        else:
            from ..servesim.profiling import Grid, profile_model

            grid = Grid(max_tokens, max_kv, max_seqs)
            about = {"model": model, "patched": patched}
            profile_model(lambda width: _rank(model, width, patched), shared, out, grid, about)
    typer.echo(f"wrote {out}")


def _rank(name: str, width: int, patched: bool) -> Any:
    """The model; for a width above 1 a rank of it: a share of heads and MLP, with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import hf_infeco

    place = "cuda" if torch.cuda.is_available() else "cpu"
    if width == 1:
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    else:
        config = AutoConfig.from_pretrained(name)
        whole = config.to_dict()
        sizes = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
        if odd := [size for size in sizes if whole[size] % width]:
            raise ValueError(f"{odd[0]} is {whole[odd[0]]}, which a width of {width} does not divide")
        head_dim = whole.get("head_dim") or config.hidden_size // config.num_attention_heads
        share = {size: whole[size] // width for size in sizes} | {"head_dim": head_dim}
        model = AutoModelForCausalLM.from_config(type(config)(**{**whole, **share}))
    model = model.to(place).eval()
    return hf_infeco.patch(model) if patched else model
