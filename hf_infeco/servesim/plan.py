"""
Planning: which layout serves a trace within a promise, for how much. Every layout that was considered is in the
answer, and why it lost.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .files import placed, read_description
from .requests import Request
from .settings import FORBID, Cluster, Instance, Link
from .shape import ModelShape
from .simulation import kv_blocks, simulate, tables_of_profiles
from .tables import Tables


@dataclass(frozen=True)
class Patch:
    """
    What a patch changes, as a profile of the patched model measures it.

    Args:
        profile: of the patched model; the plain one's by default.
        kv_bytes: factor of the bytes of a token in the KV cache.
        resident: share of a request's tokens that stay in the cache.
    """

    __pydantic_config__ = FORBID

    profile: str | None = None
    kv_bytes: float = 1.0
    resident: float = 1.0


@dataclass(frozen=True)
class Promise:
    """What has to hold, each in seconds at the 99th percentile; nothing where none is given."""

    __pydantic_config__ = FORBID

    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None


@dataclass(frozen=True)
class Plan:
    """
    What is looked for.

    Args:
        instance: the model, profile, device memory, link and scheduler that all layouts share.
        devices: how many there may be.
        promise: what has to hold.
        widths: tensor parallel widths; those that the profile has by default.
        splits: layouts with prefill and decode apart as well; they need `transfer`.
        patches: by name; `plain` is always there.
        transfer: the link that KV takes.
        routing: of all layouts.
    """

    __pydantic_config__ = FORBID

    instance: Instance
    devices: tuple[int, ...]
    promise: Promise = field(default_factory=Promise)
    widths: tuple[int, ...] = ()
    splits: bool = False
    patches: dict[str, Patch] = field(default_factory=dict)
    transfer: Link | None = None
    routing: str = "least_requests"


@dataclass
class Candidate:
    """
    One layout, what it would do, and why it is not taken.

    Args:
        name: such as `2 x tp4` or `1 x tp2 prefill + 3 x tp2 decode, innerq`.
        cluster: its description.
        devices: that it takes.
        summary: of its simulation; None where it could not run.
        dollars_per_million: output tokens, if the device has a price.
        reasons: what keeps it from winning; empty for those that keep the promise and that none beats.
    """

    name: str
    cluster: Cluster
    devices: int
    summary: dict[str, Any] | None = None
    dollars_per_million: float | None = None
    reasons: list[str] = field(default_factory=list)


def read_plan(path: Path) -> Plan:
    """A plan's file; its paths to models and profiles are relative to it."""
    plan = read_description(path, Plan)
    patches = {
        name: replace(patch, profile=patch.profile and str(path.parent / patch.profile))
        for name, patch in plan.patches.items()
    }
    return replace(plan, instance=placed(plan.instance, path.parent), patches=patches)


def make_plan(plan: Plan, trace: Sequence[Request], progress: Callable[[str], Any] | None = None) -> list[Candidate]:
    """
    Simulates every layout; the best come first.

    Raises:
        ValueError: no width has tables, nothing was given to choose from, a trace without requests, or `splits`
            without `transfer`.
    """
    candidates = list(layouts(plan))
    if not candidates:
        raise ValueError(
            "no layout is possible: an instance's tp * pp * dp must divide `devices`, and the profile must have its "
            "width's tables"
        )
    if not trace:
        raise ValueError("the trace has no requests, so that every layout would do; give it some")
    tables = tables_of_profiles()  # layouts share them
    for each in candidates:
        if progress is not None:
            progress(each.name)
        _judge(each, plan, trace, tables)
    _find_beaten(candidates)
    return sorted(candidates, key=lambda each: (len(each.reasons), _cost(each)))


def layouts(plan: Plan) -> Iterator[Candidate]:
    """All of them: how many devices, how wide, which patch, together or apart."""
    if plan.splits and plan.transfer is None:
        raise ValueError("`splits` needs `transfer`, the link that KV takes from prefill to decode instances")
    widths = plan.widths or _measured_widths(Path(plan.instance.profile))
    for name, patch in ({"plain": Patch()} | plan.patches).items():
        suffix = "" if name == "plain" else f", {name}"
        for devices in plan.devices:
            for tp in widths:
                each = _patched(replace(plan.instance, tp=tp), patch)
                if devices % each.devices:
                    continue
                count = devices // each.devices
                together = (replace(each, count=count),)
                yield Candidate(f"{count} x tp{tp}{suffix}", Cluster(together, plan.routing), devices)
                if not plan.splits:
                    continue
                for first in range(1, count):
                    apart = (
                        replace(each, count=first, role="prefill"),
                        replace(each, count=count - first, role="decode"),
                    )
                    title = f"{first} x tp{tp} prefill + {count - first} x tp{tp} decode{suffix}"
                    yield Candidate(title, Cluster(apart, plan.routing, plan.transfer), devices)


def _patched(instance: Instance, patch: Patch) -> Instance:
    """A patch is another profile, and room for more tokens in the same memory."""
    instance = replace(instance, profile=patch.profile or instance.profile)
    if patch.kv_bytes == patch.resident == 1.0:
        return instance
    try:
        blocks = kv_blocks(instance, ModelShape.read(instance.model))
    except ValueError:  # told when the layout is judged
        return instance
    return replace(instance, kv_blocks=int(blocks / (patch.kv_bytes * patch.resident)))


def _measured_widths(profile: Path) -> list[int]:
    return sorted(int(path.name[2:]) for path in profile.glob("tp*") if path.name[2:].isdigit())


def _judge(
    each: Candidate, plan: Plan, trace: Sequence[Request], tables: Callable[[Instance, ModelShape], Tables]
) -> None:
    """Runs it, and says what it breaks."""
    try:
        results = simulate(each.cluster, trace, tables=tables)
    except ValueError as error:
        each.reasons.append(str(error))
        return
    each.summary = results.summary()
    price = plan.instance.dollars_per_hour
    if price is not None:
        dollars = price * each.devices * each.summary["seconds"] / 3600
        each.dollars_per_million = 1e6 * dollars / each.summary["output_tokens"]
    for name in ("ttft", "tpot", "latency"):
        limit = getattr(plan.promise, name)
        if limit is not None and name in each.summary and each.summary[name]["p99"] > limit:
            each.reasons.append(f"{name} p99 is {each.summary[name]['p99']:.3g} s, promised are {limit:g} s")
    if each.summary["saturated"]:
        each.reasons.append("saturated: its queue grows as long as requests come")


def _find_beaten(candidates: list[Candidate]) -> None:
    """Of those that keep the promise, whatever another one beats in cost and in TTFT."""
    kept = [each for each in candidates if not each.reasons]
    for each in kept:
        for other in kept:
            better = _cost(other) < _cost(each) and _wait(other) <= _wait(each)
            if better and not each.reasons:
                each.reasons.append(f"{other.name} costs less and answers no later")


def _cost(each: Candidate) -> float:
    return each.dollars_per_million if each.dollars_per_million is not None else float(each.devices)


def _wait(each: Candidate) -> float:
    return each.summary["ttft"]["p99"] if each.summary else float("inf")
