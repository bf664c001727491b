"""What a benchmark is, and how any of them is run. Each folder beside this file describes one in its `suite.py`."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .documents import Table, write_pages
from .measuring import Progress, read_results, results_file, rounded, where, write_part
from .pictures import Drawer, require_matplotlib, save_pictures


@dataclass(frozen=True)
class Run:
    """Where and with what a part is measured: a device, the model of the suite, and the file of results."""

    device: str
    model: Any
    out: Path
    load: Callable[["Run"], Any]

    @cached_property
    def loaded(self) -> Any:
        """What parts of the suite share, loaded when the first one asks."""
        return self.load(self)

    def progress(self, part: str) -> Progress:
        """The pieces of a part that are done, in a file beside `out`, which goes once the part is written."""
        return Progress(self.out.with_suffix(f".{part}.progress"))


@dataclass(frozen=True)
class Suite:
    """
    One benchmark.

    Args:
        name: of its folder and of its file of results.
        title: of its page of results.
        parts: by name, what measures one to an extent; it returns a dict, or a list of entries. What a dict has in
            `where` takes the place of what `place` says.
        full, quick: extents, how much is measured; the quick one shows in a minute that everything runs.
        tables: all that `docs/results/NAME.md` shows, which is written for suites that have some.
        quotes: the one table that another page shows between its marks `results:NAME`.
        pictures: by name, the part that each shows, and what draws it from that part's entries.
        find_model: from what `--model` names, None by default, to the model of a run. Raises a ValueError.
        load: what parts share, such as the model at work; `Run.loaded` is it.
        uses_gpu: whether it runs on CUDA where there is some.
        place: what is written beside device and versions.
    """

    name: str
    title: str
    parts: dict[str, Callable[[Run, Any], Any]]
    full: Any
    quick: Any
    tables: tuple[Table, ...] = ()
    quotes: dict[str, Table] = field(default_factory=dict)
    pictures: dict[str, tuple[str, Drawer]] = field(default_factory=dict)
    find_model: Callable[[str | None], Any] | None = None
    load: Callable[[Run], Any] = lambda run: None
    uses_gpu: bool = False
    place: Callable[[Run], dict[str, Any]] = lambda run: {}


def run(
    suite: Suite,
    parts: Collection[str] | None = None,
    quick: bool = False,
    out: Path | None = None,
    plot: bool = False,
    model: str | None = None,
) -> list[Path]:
    """
    Measure `parts`, all by default, and write each to `out` as soon as it is done; the other entries of the file stay.
    The pages follow the repository's own file. A run that was cut off goes on where it was.

    Args:
        suite: the benchmark.
        parts: names out of `suite.parts`.
        quick: measure its quick extent.
        out: the file, by default `NAME.json` in `measuring.results_folder()`; in the folder for temporary files for a
            quick run, and `NAME-MODEL.json` there for another model.
        plot: draw what is in the file, beside it; the pictures of the repository's own file lie beside its page.
        model: another one than the suite's own.

    Returns:
        The files written.

    Raises:
        ValueError: a part that is none, a model that is not there, or one for a suite that has none.
        ModuleNotFoundError: `plot` without matplotlib, or a model whose package cannot be read.
        ConnectionError: a model that could not be fetched.
    """
    parts = suite.parts if parts is None else parts
    if unknown := sorted(set(parts) - set(suite.parts)):
        raise ValueError(f"No part is called {', '.join(unknown)}; there are {', '.join(suite.parts)}.")
    if model and suite.find_model is None:
        raise ValueError(f"{suite.name} measures no model: leave out --model.")
    if plot:
        require_matplotlib()
    name = f"{suite.name}-{Path(model).name}" if model else suite.name
    run = Run(
        device="cuda" if suite.uses_gpu and torch.cuda.is_available() else "cpu",
        model=suite.find_model(model) if suite.find_model else None,
        out=out or results_file(name, is_full=not quick and model is None),
        load=suite.load,
    )
    for part in parts:
        place = where(run.device) | suite.place(run)
        measured = rounded(suite.parts[part](run, suite.quick if quick else suite.full))
        entry = measured if isinstance(measured, dict) else {"entries": measured}
        write_part(run.out, part, {"where": place | entry.pop("where", {}), **entry})
        run.progress(part).path.unlink(missing_ok=True)
    pictures = save_pictures(suite, read_results(run.out), run.out) if plot else []
    return [run.out, *pictures, *write_pages(suite, run.out)]
