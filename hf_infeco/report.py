"""`PatchReport`: what was enabled, what fell back and why, and what the KV cache costs before and after."""

from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal

Status = Literal["enabled", "fallback", "unsupported", "off"]


@dataclass(frozen=True)
class AreaReport:
    """
    One line of a report: some layers, one outcome.

    Attributes:
        area (`str`): the method's name, as in `InfecoConfig`.
        status (`str`): "enabled"; "fallback" (correct, but without this method's gain); "unsupported" (nothing was
            changed); "off" (not asked for).
        layers (`str`): layers concerned, as a pattern: "0-3", "0-22 step 2", "0,5".
        detail (`str`): for "enabled" what runs; otherwise why not.
        backend (`str`, *optional*): implementation that runs.
    """

    area: str
    status: Status
    layers: str
    detail: str
    backend: str | None = None


@dataclass(frozen=True)
class PatchReport:
    """
    Attributes:
        model (`str`): class or model type.
        areas (`list[AreaReport]`): outcomes, in the order of the methods.
        kv_bytes_per_token_before, kv_bytes_per_token_after (`float`): bytes that one more token adds to the cache of
            one sequence, over all layers that grow; windows of constant size are not counted.
        num_tokens (`int`, *optional*), kv_bytes_before, kv_bytes_after (`float`, *optional*): a length that was asked
            for, and all bytes that the cache of one sequence of that length holds, exact windows included.
        measured (`dict`): by area, what the method has counted so far.
        versions (`dict`): of hf_infeco, transformers and torch.
    """

    model: str
    areas: list[AreaReport]
    kv_bytes_per_token_before: float
    kv_bytes_per_token_after: float
    num_tokens: int | None = None
    kv_bytes_before: float | None = None
    kv_bytes_after: float | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def s2o(self) -> Any:
        """Density so far, an `S2OReport`; None where sparse prefill was not asked for."""
        return self.measured.get("s2o")

    def status(self, area: str) -> set[Status]:
        """All outcomes of one area: a mixed model has several."""
        return {entry.status for entry in self.areas if entry.area == area}

    def to_dict(self) -> dict[str, Any]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values["areas"] = [asdict(area) for area in self.areas]
        values["measured"] = {area: counted.to_dict() for area, counted in self.measured.items()}
        return values

    def __str__(self) -> str:
        rows = [("area", "status", "layers", "detail")]
        rows += [
            (e.area, e.status, e.layers, f"{e.detail} [{e.backend}]" if e.backend else e.detail) for e in self.areas
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        before, after = self.kv_bytes_per_token_before, self.kv_bytes_per_token_after
        kv = f"KV cache: {before:,.0f} bytes per token before, {after:,.0f} after"
        kv += f" ({after / before:.2f}x)" if before else ""
        if self.num_tokens is not None and self.kv_bytes_before and self.kv_bytes_after:
            before, after = self.kv_bytes_before, self.kv_bytes_after
            kv += (
                f"; {self.num_tokens:,} tokens: {before:,.0f} bytes before, {after:,.0f} after ({after / before:.2f}x)"
            )
        kv = "; ".join([kv, *filter(None, map(str, self.measured.values()))])
        return "\n".join([f"{self.model} ({versions})", *lines, kv])


def layer_pattern(layers: list[int]) -> str:
    """Names layer indices briefly: `[0, 1, 2]` is "0-2", `[0, 2, 4]` is "0-4 step 2", `[]` is "-"."""
    layers = sorted(layers)
    if not layers:
        return "-"
    steps = {later - earlier for earlier, later in pairwise(layers)}
    if len(layers) > 2 and len(steps) == 1:
        step = steps.pop()
        return f"{layers[0]}-{layers[-1]}" + (f" step {step}" if step > 1 else "")
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
