"""Parity with the published results on openb: 17 variants, 6 policies, 10 seeds, means at loads 100 and 130;
and with `--policies gpufleet` the scheduler itself beside the best of them.

Our random numbers are not those of the published runs, so means over seeds are compared and not single runs.
The published values are read from the folder fgd_results beside the trace.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from benchmarks.keeping import RESULTS, keep

from gpufleet.simulator.openb import find_traces, read_trace
from gpufleet.simulator.published import LIVE, POLICIES, SEEDS, VARIANTS
from gpufleet.simulator.runs import run

LOADS = (100, 130)
BARS = {"fgd": 0.25, "bestfit": 0.25}
OTHER_BAR = 0.6
"""Points that a mean may differ from the published one, at every load and on every variant."""

LABELS = {
    "random": "01-Random",
    "dotprod": "02-DotProd",
    "clustering": "03-GpuClustering",
    "packing": "04-GpuPacking",
    "bestfit": "05-BestFit",
    "fgd": "06-FGD",
    LIVE: "06-FGD",
}
"""How the published table names the policies; the scheduler is compared with the best of them."""

BELOW = 0.1
"""Points that the scheduler may be below the best published policy at arrived load 100."""


class Row(NamedTuple):
    """One variant and policy: percent by load for each seed, and seconds of a run."""

    variant: str
    policy: str
    percent: dict[int, list[float]]
    seconds: float


Published = dict[tuple[str, str, int], list[float]]


def published(folder: Path) -> Published:
    """Allocated percent of each seed by variant, policy and load, from the folder of the results."""
    found: Published = {}
    with gzip.open(folder / "analysis_allo_discrete.csv.gz", "rt", newline="") as stream:
        for row in csv.DictReader(stream):
            variant = row["workload"].removeprefix("openb_pod_list_")
            for load in LOADS:
                found.setdefault((variant, row["sc_policy"], load), []).append(float(row[str(load)]))
    return found


def measure(job: tuple[str, str], traces: Path, seeds: Sequence[int]) -> Row:
    """All seeds of one variant and policy."""
    variant, policy = job
    trace = read_trace(traces, variant)
    began = time.perf_counter()
    curves = [run(trace, policy, seed).outcome.allocation_percent for seed in seeds]
    seconds = (time.perf_counter() - began) / len(seeds)
    return Row(variant, policy, {load: [curve[load] for curve in curves] for load in LOADS}, seconds)


def deviation(row: Row, table: Published, load: int) -> float:
    """Our mean minus the published one, in points."""
    return mean(row.percent[load]) - mean(table[row.variant, LABELS[row.policy], load])


def bar_of(policy: str) -> float:
    """The largest deviation that is allowed."""
    return BELOW if policy == LIVE else BARS.get(policy, OTHER_BAR)


def passes(row: Row, table: Published) -> bool:
    """Whether a row is within its bar: as published, or for the scheduler not below FGD."""
    if row.policy == LIVE:
        return deviation(row, table, LOADS[0]) >= -BELOW
    return worst(row, table) <= bar_of(row.policy)


def worst(row: Row, table: Published) -> float:
    """The larger deviation of both loads, without its sign."""
    return max(abs(deviation(row, table, load)) for load in LOADS)


def report(rows: Iterable[Row], table: Published) -> str:
    """Deviations of every variant and policy, and for each policy their mean and the worst beside the bar."""
    rows = list(rows)
    policies = [policy for policy in (*POLICIES, LIVE) if any(row.policy == policy for row in rows)]
    lines = ["our mean minus the published one, points at arrived load 100 / 130"]
    lines.append(f"{'':<12}" + "".join(f"{policy:>16}" for policy in policies))
    for variant in dict.fromkeys(row.variant for row in rows):
        cells = {row.policy: row for row in rows if row.variant == variant}
        texts = [
            " / ".join(f"{deviation(cells[one], table, load):+.2f}" for load in LOADS) for one in policies
        ]
        lines.append(f"{variant:<12}" + "".join(f"{text:>16}" for text in texts))
    lines.append("")
    lines.append(f"{'policy':<12}{'mean':>8}{'worst':>8}{'bar':>8}{'s/run':>8}")
    for policy in policies:
        mine = [row for row in rows if row.policy == policy]
        found = [worst(row, table) for row in mine]
        verdict = "" if all(passes(row, table) for row in mine) else "   MISSED"
        seconds = mean(row.seconds for row in mine)
        lines.append(
            f"{policy:<12}{mean(found):>8.2f}{max(found):>8.2f}{bar_of(policy):>8.2f}{seconds:>8.2f}{verdict}"
        )
    return "\n".join(lines)


def as_json(row: Row, table: Published) -> dict[str, Any]:
    """A row as it is kept."""
    found: dict[str, Any] = {"variant": row.variant, "policy": row.policy, "seconds": round(row.seconds, 3)}
    for load in LOADS:
        ours, theirs = row.percent[load], table[row.variant, LABELS[row.policy], load]
        found[str(load)] = {
            "mean": round(mean(ours), 3),
            "sd": round(stdev(ours), 3) if len(ours) > 1 else 0.0,
            "published": round(mean(theirs), 3),
            "published_sd": round(stdev(theirs), 3),
        }
    return found


def main() -> None:
    """Run the benchmark, print the deviations, keep them if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS, metavar="NAME")
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=(*POLICIES, LIVE), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N")
    parser.add_argument("--traces", type=Path, help="folder of the traces, as for gpufleet simulate openb")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="write the numbers as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    traces = find_traces(options.traces, os.environ, Path.cwd())
    table = published(traces.parent / "fgd_results")
    jobs = [(variant, policy) for variant in options.variants for policy in options.policies]
    began = time.perf_counter()
    with ProcessPoolExecutor(options.processes) as pool:
        rows = list(pool.map(partial(measure, traces=traces, seeds=options.seeds), jobs))
    seconds = time.perf_counter() - began
    runs = len(jobs) * len(options.seeds)
    print(report(rows, table))
    print(f"\n{runs} runs in {seconds:.0f} s with {options.processes} processes")
    if options.keep:
        content = {
            "bars": {policy: bar_of(policy) for policy in options.policies},
            "seeds": list(options.seeds),
            "seconds": round(seconds, 1),
            "rows": [as_json(row, table) for row in rows],
        }
        print(f"kept in {keep(options.results, 'openb', content)}")


if __name__ == "__main__":
    main()
