"""Pictures of a timeline: GPUs that are allocated and GPUs that jobs wait for, over time."""

from __future__ import annotations

from pathlib import Path

from gpufleet.fleet.demands import MILLI
from gpufleet.simulator.pictures import check_picture, save
from gpufleet.simulator.timeline import Timeline

_DAY_S, _HOUR_S = 86_400, 3_600
_SHORT_S = 3 * _DAY_S
"""Up to so long a picture counts hours."""


def draw_timeline(timeline: Timeline, path: Path) -> None:
    """Draw both as steps. Raises GpufleetError where the file cannot be written."""
    from matplotlib.figure import Figure

    check_picture(path)
    began = timeline.steps[0].at_s if timeline.steps else 0
    name, unit = ("hours", _HOUR_S) if timeline.until_s - began <= _SHORT_S else ("days", _DAY_S)
    ends = (*timeline.steps, timeline.steps[-1]._replace(at_s=timeline.until_s)) if timeline.steps else ()
    times = [(step.at_s - began) / unit for step in ends]
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    capacity = timeline.capacity_milli / MILLI
    allocated = [step.allocated_milli / MILLI for step in ends]
    above.fill_between(times, allocated, step="post", alpha=0.6, lw=0, label="allocated")
    above.axhline(capacity, color="grey", ls="--", lw=0.8, label="all GPUs")
    above.set(ylabel="GPUs", ylim=(0, 1.05 * max(1.0, capacity)))
    above.legend(fontsize="small", loc="lower right")
    queued = [step.queued_milli / MILLI for step in ends]
    below.fill_between(
        times, queued, step="post", color="tab:orange", lw=0, label="asked for by waiting jobs"
    )
    below.set(xlabel=f"{name} since the first arrival", ylabel="GPUs")
    below.set(xlim=(0, None), ylim=(0, 1.05 * max(1.0, *queued, 0.0)))
    below.legend(fontsize="small", loc="upper left")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    save(figure, path)
