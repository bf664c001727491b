"""`hf-infeco serve`: an HTTP endpoint of OpenAI's shape on processes whose parallel width changes."""

from typing import Annotated

import typer

from .failing import failures_told


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_PATH", help="A folder or a name on the Hub.")],
    processes: Annotated[int, typer.Option(min=1, help="Started here, each with the whole model.")] = 1,
    width: Annotated[str, typer.Option(help="Processes that run as one, such as 1 or 2; auto: by the load.")] = "auto",
    host: Annotated[str, typer.Option(help="Where to listen; this machine only by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="HF_INFECO_API_KEY", help="What clients must send as a bearer token.")
    ] = None,
    cache_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of KV cache of each process, of all its requests together.")
    ] = 8192,
    max_requests: Annotated[int, typer.Option(min=1, help="At a time; more are answered with 429.")] = 64,
) -> None:
    """
    Serve a model: /v1/completions, /v1/chat/completions, /status, /switch, /metrics, and a status page at /.

    Needs the extra `serve`.
    """
    if width != "auto" and not width.isdecimal():
        raise typer.BadParameter(f"--width {width} must be auto or a number of processes.")
    if api_key == "":  # such as of a variable that is not set
        raise typer.BadParameter("--api-key is empty: leave it out to serve without a key.")
    with failures_told("serve"):
        from ..serving import Limits, Settings
        from ..serving import serve as answer
    settings = Settings(
        model=model,
        width=None if width == "auto" else int(width),
        processes=processes,
        host=host,
        port=port,
        cache_tokens=cache_tokens,
        limits=Limits(api_key, max_requests),
    )
    with failures_told(None):
        answer(settings, lambda address: typer.echo(f"serving {model} on {address}"))
