"""Pictures of runs: allocated GPUs over GPUs that have arrived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpufleet.fleet.errors import GpufleetError
from gpufleet.simulator.runs import Run, mean_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMS = (".svg", ".png")
LEFT_BEHIND = 0.5
"""Points that a policy must be behind the arrivals for the picture to begin just before."""


def check_picture(path: Path) -> None:
    """Raises GpufleetError for a file that is no picture by its name, or in a folder that does not exist."""
    if path.suffix not in FORMS:
        raise GpufleetError(
            reason="Usage",
            message=f"{path} is neither an SVG nor a PNG by its name",
            hint="name the picture FILE.svg or FILE.png",
        )
    if not path.parent.is_dir():
        raise _not_written(path, f"{path.parent} is no folder")


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw one line for each variant and policy: the mean of its seeds, with a band from the lowest to the
    highest. Raises GpufleetError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    check_picture(path)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines = _by_line(runs)
    for name, same in lines.items():
        _line(axes, name, same)
    first = begins_at(runs)
    last = max(load for one in runs for load in one.outcome.allocation_percent)
    axes.plot([first, 100], [first, 100], "--", color="grey", lw=0.8, label="everything placed")
    axes.set(xlabel="GPUs that have arrived, % of all GPUs", ylabel="GPUs allocated, % of all GPUs")
    axes.set(xlim=(first, last), ylim=(first, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right", ncols=1 + len(lines) // 20)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture. Raises GpufleetError where the file cannot be written."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise _not_written(path, error.strerror or str(error)) from None


def begins_at(runs: Sequence[Run]) -> int:
    """The arrived load (a multiple of 10) from which a picture is worth its room: ten points or more before
    the first policy leaves something behind.
    """
    behind = [
        load
        for one in runs
        for load, percent in one.outcome.allocation_percent.items()
        if load - percent > LEFT_BEHIND
    ]
    return max(0, min(behind) // 10 * 10 - 10) if behind else 0


def _not_written(path: Path, why: str) -> GpufleetError:
    return GpufleetError(
        reason="PictureFailed",
        message=f"cannot write {path}: {why}",
        hint="name a file in a folder that exists and may be written",
    )


def _by_line(runs: Sequence[Run]) -> Mapping[str, list[Run]]:
    several = len({one.variant for one in runs}) > 1
    lines: dict[str, list[Run]] = {}
    for one in runs:
        lines.setdefault(f"{one.variant} {one.policy}" if several else one.policy, []).append(one)
    return lines


def _line(axes: Axes, name: str, runs: list[Run]) -> None:
    mean = mean_percent(runs)
    loads = list(mean)
    (line,) = axes.plot(loads, list(mean.values()), lw=1.2, label=name)
    if len(runs) > 1:
        curves = [one.outcome.allocation_percent for one in runs]
        low = [min(curve[load] for curve in curves) for load in loads]
        high = [max(curve[load] for curve in curves) for load in loads]
        axes.fill_between(loads, low, high, color=line.get_color(), alpha=0.2, lw=0)
