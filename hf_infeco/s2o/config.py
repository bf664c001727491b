"""The settings of S2O prefill attention."""

from dataclasses import dataclass, field

from ..config import MethodConfig


@dataclass(frozen=True, kw_only=True)
class S2OConfig(MethodConfig, method="s2o"):
    """
    How much of the past a prefill query visits. `tau` is the dial; the rest was chosen by measurement (docs/s2o.md).

    Args:
        tau (`float`, defaults to 0.002): stop threshold on the marginal gain of softmax mass, 0 <= tau < 1; 0 is dense
            and exact.
        segment (`int`, defaults to 512): queries that share one order of the past.
        granule (`int`, defaults to 8): contiguous keys that are ranked and visited together.
        chunk (`int`, defaults to 128): keys visited between two tests of the gain.
        patience (`int`, defaults to 2): chunks running whose gain must stay below `tau` before a query stops.
        sink (`int`, defaults to 16): first keys of the sequence, always visited.
        local (`int`, defaults to 128): keys right before a segment, always visited.
        crossover (`int`, defaults to 16384): sequences of fewer keys run dense, as ranking would
            cost more than it saves.

    Raises:
        ValueError: naming the field, its value, the allowed range and the way out.
    """

    tau: float = field(default=0.002, metadata={"help": "stop threshold on the marginal gain of mass; 0 is exact"})
    segment: int = field(default=512, metadata={"help": "queries that share one order of the past"})
    granule: int = field(default=8, metadata={"help": "contiguous keys ranked and visited together"})
    chunk: int = field(default=128, metadata={"help": "keys visited between two tests of the gain"})
    patience: int = field(default=2, metadata={"help": "chunks running below tau before a query stops"})
    sink: int = field(default=16, metadata={"help": "first keys of the sequence, always visited"})
    local: int = field(default=128, metadata={"help": "keys right before a segment, always visited"})
    crossover: int = field(default=16384, metadata={"help": "sequences of fewer keys than this run dense"})

    def validate(self) -> None:
        if not 0 <= self.tau < 1:
            raise ValueError(
                f"S2OConfig.tau={self.tau} is outside 0 <= tau < 1: it is a share of softmax mass. Use 0 for exact "
                "attention, or a value around 0.002."
            )
        for name in ("granule", "segment", "chunk", "patience"):
            self._check_at_least(name, 1)
        for name in ("sink", "local", "crossover"):
            self._check_at_least(name, 0)
        for name in ("segment", "chunk"):
            size = getattr(self, name)
            if size % self.granule:
                below = size // self.granule * self.granule
                raise ValueError(
                    f"S2OConfig.{name}={size} is no multiple of granule={self.granule}, and keys are visited in whole "
                    f"granules. Use {name}={below + self.granule}" + (f" or {below}." if below else ".")
                )

    def _check_at_least(self, name: str, least: int) -> None:
        value, described = getattr(self, name), self.__dataclass_fields__[name]
        if value < least:
            raise ValueError(
                f"S2OConfig.{name}={value} is below its least value {least} ({described.metadata['help']}). "
                f"Use {name}={least} or more; the default is {described.default}."
            )
