"""A month of a fleet in virtual time: seconds for the synthetic load of `gpufleet simulate synthetic`.

The bar is for 30 days of 400 nodes with at least 50,000 jobs through the scheduler itself, on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.keeping import RESULTS, keep

from gpufleet.simulator.synthetic import synthetic_load
from gpufleet.simulator.timeline import INTERVAL_S, simulate
from gpufleet.simulator.waits import answer

BAR_S, BAR_JOBS = 60, 50_000
NOT_KEPT = ("allocation", "runs")
_DAY_S = 86_400


def measure(nodes: int, days: int, seed: int, interval_s: int) -> dict[str, Any]:
    """What came out, as the command line has it, without the jobs and steps one by one."""
    load = synthetic_load(nodes, days, seed)
    began = time.perf_counter()
    timeline = simulate(load, days * _DAY_S, interval_s)
    found = answer(timeline, time.perf_counter() - began)
    asked = {"nodes": nodes, "days": days, "seed": seed, "interval_s": interval_s}
    return {**asked, **{name: value for name, value in found.items() if name not in NOT_KEPT}}


def main() -> None:
    """Run the benchmark, print the numbers, keep them if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=400)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--interval", type=int, default=INTERVAL_S, help="seconds between decisions at least")
    parser.add_argument("--keep", action="store_true", help="write the numbers as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    found = measure(options.nodes, options.days, options.seed, options.interval)
    print(
        f"{found['jobs']} jobs and {found['decisions']} decisions in {found['seconds']:.1f} s, "
        f"{1000 * found['seconds'] / max(1, found['decisions']):.2f} ms a decision; utilisation "
        f"{found['utilisation_percent']:.1f} %, {found['waiting']} jobs wait at the end\n"
        f"(bar for 30 days of 400 nodes: {BAR_S} s with at least {BAR_JOBS} jobs)"
    )
    if options.keep:
        path = keep(options.results, "month", {**found, "bar_s": BAR_S, "bar_jobs": BAR_JOBS})
        print(f"kept in {path}")


if __name__ == "__main__":
    main()
