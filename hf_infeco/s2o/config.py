"""The settings of S2O prefill attention."""

from dataclasses import dataclass, field

from ..config import MethodConfig
from ..kernels.s2o.settings import S2OSettings

GRANULES = (16, 32)  # what every kernel takes
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class S2OConfig(MethodConfig, method="s2o"):
    """
    How much of the past a prefill query visits. `tau` is the dial; the rest was chosen by measurement (docs/s2o.md).

    Args:
        tau (`float`, defaults to 0.002): a granule of keys that promises to change less than this share of a query's
            softmax mass is not visited, 0 <= tau < 1; 0 is dense and exact.
        target_mass (`float`, *optional*): visit more, query by query (or tile by tile), until this share of the
            softmax mass is visited by estimate, 0 < target_mass < 1.
        segment (`int`, defaults to 512): queries that share one order of the past and attend their own keys exactly;
            `granule` times a power of two.
        granule (`int`, defaults to 32): like keys that are judged and visited together, 16 or 32.
        compensate (`bool`, defaults to `True`): whether keys that are not visited enter by their granule's means, or
            are left out of the softmax.
        crossover (`int` or `"auto"`, defaults to `"auto"`): sequences of fewer keys run dense. "auto" is measured once
            for each device and shape of heads, and kept in a file.

    Raises:
        ValueError: naming the field, its value, the allowed range and the way out.
    """

    tau: float = field(default=0.002, metadata={"help": "least promised share of the mass; 0 is exact"})
    target_mass: float | None = field(default=None, metadata={"help": "share of the mass to visit at least"})
    segment: int = field(default=512, metadata={"help": "queries that share one order of the past"})
    granule: int = field(default=32, metadata={"help": "like keys that are judged and visited together"})
    compensate: bool = field(default=True, metadata={"help": "unvisited keys enter by their means"})
    crossover: int | str = field(default=AUTO, metadata={"help": "sequences of fewer keys than this run dense"})

    def validate(self) -> None:
        if not 0 <= self.tau < 1:
            raise ValueError(
                f"S2OConfig.tau={self.tau} is outside 0 <= tau < 1: it is a share of softmax mass. Use 0 for exact "
                f"attention, or a value around {self._default('tau')}."
            )
        if self.target_mass is not None and not 0 < self.target_mass < 1:
            raise ValueError(
                f"S2OConfig.target_mass={self.target_mass} is outside 0 < target_mass < 1: it is a share of softmax "
                "mass. Use tau=0 for all of it, None to go by tau alone, or a value such as 0.95."
            )
        if self.granule not in GRANULES:
            raise ValueError(
                f"S2OConfig.granule={self.granule} is none of {GRANULES}, which the kernels take. Use "
                f"granule={self._default('granule')}."
            )
        ratio = self.segment / self.granule
        if ratio < 1 or ratio != int(ratio) or int(ratio) & (int(ratio) - 1):
            below = 1 << max(int(ratio), 1).bit_length() - 1
            raise ValueError(
                f"S2OConfig.segment={self.segment} is not granule={self.granule} times a power of two, and blocks of "
                f"keys are halved down to granules. Use segment={self.granule * below} or {self.granule * below * 2}."
            )
        if isinstance(self.crossover, str) and self.crossover != AUTO:
            raise ValueError(f'S2OConfig.crossover={self.crossover!r} is neither a number of keys nor "{AUTO}".')
        if not isinstance(self.crossover, str) and self.crossover < 0:
            raise ValueError(
                f"S2OConfig.crossover={self.crossover} is below 0, the least number of keys. Use 0 for sparse "
                f'attention at any length, or "{AUTO}".'
            )

    @property
    def kernel_settings(self) -> S2OSettings:
        """What the kernels take."""
        return S2OSettings(self.tau, self.target_mass, self.segment, self.granule, self.compensate)

    def _default(self, name: str) -> object:
        return self.__dataclass_fields__[name].default
