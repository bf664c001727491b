"""transformers' handlers of completions and chats, for one model that is there already."""

from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager

from .checks import check_chat, check_fields, refuse, stops_of
from .generation import FlyingGeneration, OneGeneration
from .reading import forgiving
from .stopping import cut

COLDEST = 0.01  # temperatures below count as 0: scores divided by them are no numbers any more


class OneModel:
    """
    What both handlers do otherwise here. One of them answers one request.

    Args:
        name (`str`): of the model, as clients call it.
    """

    def __init__(
        self, generation: FlyingGeneration, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ):
        super().__init__(ModelManager, OneGeneration(generation))  # type: ignore[call-arg] # of its static methods
        self._named = name, model, forgiving(tokenizer)
        self._stops: list[str] = []

    def _validate_request(self, body: dict[str, Any]) -> None:
        super()._validate_request(body)  # type: ignore[misc]
        check_fields(body)
        self._stops = list(stops_of(body))

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, PreTrainedModel, PreTrainedTokenizerFast]:
        name, asked = self._named[0], body.get("model")
        if asked not in (None, name):
            raise refuse(f"model={asked!r} is not served here: use {name!r}.")
        return self._named

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        config = super()._build_generation_config(body, model_generation_config, use_cb)  # type: ignore[misc]
        if body.get("max_completion_tokens") is None and body.get("max_tokens") is None:
            config.max_new_tokens = None
        if body.get("temperature") is not None:
            config.do_sample = body["temperature"] >= COLDEST
        elif body.get("top_p") is not None:
            config.do_sample = True
        config.stop_strings = self._stops
        return config


class Completions(OneModel, CompletionHandler):
    """`/v1/completions`."""


class Chats(OneModel, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    def _validate_request(self, body: dict[str, Any]) -> None:
        super()._validate_request(body)
        check_chat(body)
        if body.get("chat_template_kwargs") is None:
            body.pop("chat_template_kwargs", None)  # transformers takes it for an object where it is there

    def _build_completion(self, request_id: str, content: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # Where a model has a template of its answers, they are read from tokens, among which the stop string is.
        return super()._build_completion(request_id, cut(content, self._stops), *args, **kwargs)
