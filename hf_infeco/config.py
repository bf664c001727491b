"""Configuration: what every method's config shares, and `InfecoConfig`, which holds one config per method."""

import dataclasses
import json
import numbers
import os
from dataclasses import dataclass, field
from importlib import import_module
from types import NoneType
from typing import Any, ClassVar, Self, get_args

from huggingface_hub import hf_hub_download
from transformers.utils import logging
from transformers.utils.hub import PushToHubMixin

logger = logging.get_logger(__name__)

CONFIG_NAME = "infeco_config.json"
FORMAT_VERSION = 1  # raised when a saved field changes its meaning, so that an older library can say so

METHODS: dict[str, type["MethodConfig"]] = {}


class Config(PushToHubMixin):
    """
    Base of every config: a frozen dataclass whose fields are checked on creation, with a JSON round trip and the Hub's
    `save_pretrained` / `from_pretrained` / `push_to_hub`.

    Subclasses override `validate` and raise `ValueError` with a sentence that names the value, the limit and the way
    out.
    """

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            _check_type(self, entry)
        self.validate()

    def validate(self) -> None:
        """Checks the values against each other; types have been checked before."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with the format version; `None` stands for a method that is switched off."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        plain = {key: value.to_dict() if isinstance(value, Config) else value for key, value in values.items()}
        return {"config_class": type(self).__name__, "format_version": FORMAT_VERSION, **plain}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """
        Inverse of `to_dict`. Unknown keys are dropped with a warning; a newer format version is warned about.

        Raises:
            ValueError: if `values` is no dict, or that of another config.
        """
        if not isinstance(values, dict):
            raise ValueError(f"{cls.__name__}: {values!r} is a {type(values).__name__}, not a dict of its fields.")
        values = dict(values)
        config_class = values.pop("config_class", cls.__name__)
        if config_class != cls.__name__:
            raise ValueError(f"This is a saved {config_class}, not a {cls.__name__}: read it with {config_class}.")
        version = values.pop("format_version", FORMAT_VERSION)
        if type(version) is not int:
            raise ValueError(
                f"{cls.__name__}: format_version={version!r} must be a whole number up to {FORMAT_VERSION}."
            )
        if version > FORMAT_VERSION:
            logger.warning(
                f"{cls.__name__}: this config has format version {version}, newer than {FORMAT_VERSION}, the newest "
                "this hf_infeco knows. Fields may have changed their meaning; upgrade hf_infeco to be sure."
            )
        known = {entry.name for entry in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            logger.warning(
                f"{cls.__name__}: dropping unknown keys {unknown}; this hf_infeco knows {sorted(known)}. "
                "A config saved by a newer hf_infeco may need an upgrade."
            )
        return cls(**{key: value for key, value in values.items() if key in known})

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """
        Writes `infeco_config.json` into `save_directory`; `push_to_hub=True` uploads it too (`repo_id=` as a keyword).
        """
        os.makedirs(save_directory, exist_ok=True)
        with open(os.path.join(save_directory, CONFIG_NAME), "w", encoding="utf-8") as file:
            file.write(self.to_json_string())
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **kwargs)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike, **hub_kwargs: Any) -> Self:
        """Reads `infeco_config.json` from a folder or a Hub repository; `hub_kwargs` go to `hf_hub_download`."""
        path = os.path.join(path_or_repo, CONFIG_NAME)
        if not os.path.isfile(path):
            if os.path.isdir(path_or_repo):
                raise FileNotFoundError(
                    f"No {CONFIG_NAME} in {os.fspath(path_or_repo)!r}; save one with save_pretrained()."
                )
            path = hf_hub_download(os.fspath(path_or_repo), CONFIG_NAME, **hub_kwargs)
        with open(path, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))


def _check_type(config: Config, entry: dataclasses.Field) -> None:
    """Numbers must be numbers: `segment="512"` or `segment=True` fails here, not deep inside a kernel."""
    value, expected = getattr(config, entry.name), entry.type
    kinds = get_args(expected) or (expected,)  # of a union such as `float | None`
    if not all(kind in (int, float, bool, str, NoneType) for kind in kinds):
        return
    accepted = tuple({int: numbers.Integral, float: numbers.Real}.get(kind, kind) for kind in kinds)
    is_bool_for_number = isinstance(value, bool) and bool not in kinds
    if not isinstance(value, accepted) or is_bool_for_number:
        names = " or ".join(kind.__name__ for kind in kinds if kind is not NoneType)
        raise ValueError(
            f"{type(config).__name__}.{entry.name}={value!r} is a {type(value).__name__}; it must be a "
            f"{names} ({entry.metadata.get('help', 'see the documentation')})."
        )


class MethodConfig(Config):
    """
    Base of one method's config. `class S2OConfig(MethodConfig, method="s2o")` makes it a field value of
    `InfecoConfig`; names in `presets` are class methods that a user may also pass as a string: `patch(model,
    innerq="small")`.
    """

    presets: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, method: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if method is not None:
            if method in METHODS:
                raise ValueError(f"Method {method!r} is already registered by {METHODS[method].__name__}.")
            METHODS[method] = cls

    @classmethod
    def coerce(cls, value: Any) -> Self | None:
        """What a user may write for this method: a config, True or a preset's name, a dict, False or None for off."""
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, cls):
            return value
        if isinstance(value, dict):
            return cls.from_dict(value)
        if isinstance(value, str) and value in cls.presets:
            return getattr(cls, value)()
        raise ValueError(
            f"{value!r} is no setting for {cls.__name__}: pass a {cls.__name__}, a dict of its fields, True, False"
            + (f", or one of {list(cls.presets)}." if cls.presets else ".")
        )


def _config_class(method: str) -> type[MethodConfig]:
    """A method's config, which the import of the method's folder registers."""
    if method not in METHODS:
        import_module(f".{method}.config", __package__)
    return METHODS[method]


def _default(method: str) -> Any:
    return field(default_factory=lambda: _config_class(method)())


@dataclass(frozen=True)
class InfecoConfig(Config):
    """
    What `patch` enables: one config per method, `None` for off. Each field also takes what `MethodConfig.coerce`
    takes.

    Args:
        s2o (`S2OConfig`, *optional*): sparse prefill attention.
        innerq (`InnerQConfig`, *optional*): quantized KV cache.
    """

    s2o: Any = _default("s2o")
    innerq: Any = _default("innerq")

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            object.__setattr__(self, entry.name, _config_class(entry.name).coerce(getattr(self, entry.name)))
        super().__post_init__()
