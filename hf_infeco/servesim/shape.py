"""What a model's `config.json` says about its size."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder. Bytes are for `value_bytes` a number (2 for bfloat16)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    experts: int = 0
    experts_per_token: int = 0
    tied: bool = False
    value_bytes: int = 2

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ModelShape":
        """
        From the fields of a `config.json` of transformers.

        Raises:
            ValueError: one that is needed is not there.
        """
        config = config.get("text_config", config)
        needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
        if missing := [name for name in needed if not config.get(name)]:
            raise ValueError(f"the model's config has no {', '.join(missing)}")
        heads = config["num_attention_heads"]
        experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts") or 0
        wide = config.get("intermediate_size", 4 * config["hidden_size"])
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config.get("moe_intermediate_size", wide) if experts else wide,
            vocab=config["vocab_size"],
            experts=experts,
            experts_per_token=config.get("num_experts_per_tok", 0) if experts else 0,
            tied=bool(config.get("tie_word_embeddings", False)),
            value_bytes=4 if (config.get("torch_dtype") or config.get("dtype")) == "float32" else 2,
        )

    @classmethod
    def read(cls, source: str | Path) -> "ModelShape":
        """From a `config.json`, or the folder that has one."""
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        try:
            return cls.from_config(json.loads(path.read_text("utf-8")))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}); `model` names a config.json") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def attention_weights(self) -> int:
        """Numbers in the projections of one layer's attention."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def mlp_weights(self) -> int:
        """Numbers in one MLP, which is one expert where there are experts."""
        return 3 * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        """All numbers of the model."""
        per_layer = self.attention_weights + self.mlp_weights * max(self.experts, 1)
        return self.layers * per_layer + self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def kv_bytes_per_token(self) -> int:
        """Of all layers and heads."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.value_bytes

    def device_weights(self, tp: int, pp: int, ep: int) -> int:
        """Numbers that one device holds."""
        experts = self.layers * self.mlp_weights * self.experts
        return (self.weights - experts) // (tp * pp) + experts // (max(ep, tp) * pp)
