"""InnerQ's settings."""

from dataclasses import dataclass, field
from typing import ClassVar, Self

from ..config import MethodConfig
from ..kernels.innerq.reference import GROUP

SUPPORTED_BITS = (2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class InnerQConfig(MethodConfig, method="innerq"):
    """
    KV cache quantized along the inner dimension (InnerQ, arXiv 2602.23200).

    4 bits are {-7, ..., 7} steps, 3 bits {-3, ..., 3}, 2 bits {-1.5, -0.5, 0.5, 1.5}. Bits per stored number, with the
    float16 scale of each group of 32 and, at head_dim 64, the norms: the default 4.125, `balanced()` 3.625, `size()`
    3.125; the paper's `base()` 3.5, `small()` 3.0, `hybrid()` 3.25. The default spends a bit on keys because retrieval
    from a long context suffers with 3, and norms on values because quiet tokens with most of the attention need them
    [ours]. With `sink + recent` at least the context length nothing is quantized and the cache is exact.

    Args:
        key_bits (`int`, defaults to 4): symmetric bits of a key number: 2, 3 or 4.
        value_bits (`int`, defaults to 3): bits of a value number: 2, 3 or 4.
        hybrid_values (`bool`, defaults to `False`): each group of values takes the symmetric or the asymmetric form,
            whichever is nearer; costs one float16 zero point per group.
        normalize_keys (`bool`, defaults to `True`): divide key channels by their norm over the first tokens.
        center_keys (`bool`, defaults to `True`): take each key channel's mean over the first tokens off first.
        rotate_keys (`bool`, defaults to `False`): spread what is left of each channel over 32 or more, see
            `kernels.innerq.reference.rotate`; costs no bits, and a product of each query with a matrix as wide.
        normalize_values (`bool`, defaults to `True`): divide each token's values by their norm; costs 16 bits per
            token and KV head.
        sink (`int`, defaults to 32): first tokens kept in full precision.
        recent (`int`, defaults to 96): at least so many of the last tokens are kept in full precision.
    """

    presets: ClassVar[tuple[str, ...]] = ("balanced", "size", "base", "small", "hybrid")

    key_bits: int = field(default=4, metadata={"help": "symmetric bits of a key number: 2, 3 or 4"})
    value_bits: int = field(default=3, metadata={"help": "bits of a value number: 2, 3 or 4"})
    hybrid_values: bool = field(default=False, metadata={"help": "symmetric or asymmetric per group of values"})
    normalize_keys: bool = field(default=True, metadata={"help": "divide key channels by their norm"})
    center_keys: bool = field(default=True, metadata={"help": "take the mean of key channels off"})
    rotate_keys: bool = field(default=False, metadata={"help": "spread key channels over one another"})
    normalize_values: bool = field(default=True, metadata={"help": "divide the values of each token by their norm"})
    sink: int = field(default=32, metadata={"help": "first tokens kept in full precision"})
    recent: int = field(default=96, metadata={"help": "least number of last tokens kept in full precision"})

    @classmethod
    def balanced(cls) -> Self:
        """4-bit keys, 2-bit values with norms: half a bit less than the default for a little more loss [ours]."""
        return cls(value_bits=2)

    @classmethod
    def size(cls) -> Self:
        """3-bit keys, rotated, 2-bit values with norms: half a bit less again [ours]."""
        return cls(key_bits=3, rotate_keys=True, value_bits=2)

    @classmethod
    def base(cls) -> Self:
        """The paper's 3-bit keys, 3-bit values."""
        return cls(key_bits=3, normalize_values=False)

    @classmethod
    def small(cls) -> Self:
        """3-bit keys, 2-bit values."""
        return cls(key_bits=3, value_bits=2, normalize_values=False)

    @classmethod
    def hybrid(cls) -> Self:
        """3-bit keys, 2-bit values, symmetric or asymmetric per group."""
        return cls(key_bits=3, value_bits=2, hybrid_values=True, normalize_values=False)

    def validate(self) -> None:
        for name in ("key_bits", "value_bits"):
            if getattr(self, name) not in SUPPORTED_BITS:
                raise ValueError(
                    f"InnerQConfig.{name}={getattr(self, name)} is not supported: use one of {SUPPORTED_BITS}. "
                    "For a cache in full precision patch with innerq=False."
                )
        for name in ("sink", "recent"):
            if getattr(self, name) < 0:
                raise ValueError(f"InnerQConfig.{name}={getattr(self, name)} must be 0 or more tokens.")

    @property
    def bits_per_number(self) -> float:
        """Average over keys and values of a token with 64 channels each, with scales, zero points and norms."""
        return self.bits_per_token(2 * GROUP, 2 * GROUP) / (4 * GROUP)

    def bits_per_token(self, key_dim: int, value_dim: int) -> float:
        """Bits of a packed token in one KV head. Keys take whole groups: of 80 channels as many as of 96."""
        key = -(-key_dim // GROUP) * (GROUP * self.key_bits + 16)
        value = value_dim * (self.value_bits + 16 / GROUP * (2 if self.hybrid_values else 1))
        return key + value + (16 if self.normalize_values else 0)

    def packed_tokens(self, num_tokens: int) -> int:
        """How many of a sequence's tokens are packed; the others are in the exact windows."""
        return max(0, num_tokens - self.sink - self.recent) // GROUP * GROUP
