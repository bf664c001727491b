"""Pictures of results. matplotlib is an extra: it is imported when something is drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .documents import pages_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .suite import Suite

Drawer = Callable[[Any], "Figure"]
PANEL = (4.4, 3.3)  # inches


def require_matplotlib() -> None:
    """Raises a ModuleNotFoundError before hours of measuring rather than behind them."""
    import matplotlib  # noqa: F401


def panels(rows: int, columns: int) -> tuple["Figure", Any]:
    """A figure and its axes `[rows, columns]`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_pictures(suite: "Suite", results: dict[str, Any], out: Path) -> list[Path]:
    """Draws the parts that were measured, beside the page of the repository's own results or else beside `out`."""
    from matplotlib import rc_context

    paths = []
    for name, (part, draw) in suite.pictures.items():
        if part in results:
            paths.append((pages_folder(suite, out) or out.parent) / f"{out.stem}_{name}.svg")
            # Names of elements and the date would otherwise differ each time that the same results are drawn.
            with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
                draw(results[part].get("entries", results[part])).savefig(paths[-1], metadata={"Date": None})
    return paths
