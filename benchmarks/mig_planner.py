"""What an exact MIG plan costs: milliseconds for random questions about one GPU and about several.

Each question draws a product, cuts its GPUs at random, takes half of the instances as busy, and wants up to
four instances a GPU of any profiles; most of the larger questions have no plan, and then what blocks is
searched too. The bar is for one GPU, which is what an agent and the scheduler ask.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from benchmarks.keeping import RESULTS, keep

from gpufleet.fleet.mig import GEOMETRIES, Geometry, Placement
from gpufleet.fleet.mig_planning import GPUCut, plan
from gpufleet.fleet.mig_room import best_start

BAR_MS = 5.0
SIZES = (1, 2, 4, 8)
WANTED_PER_GPU = 4


def cut(geometry: Geometry, draw: random.Random) -> GPUCut:
    """A GPU cut at random."""
    instances: list[Placement] = []
    for name in draw.choices(list(geometry.profiles), k=draw.randint(0, 2 * geometry.slots)):
        spot = best_start(geometry, instances, name)
        if spot is not None:
            instances.append(Placement(spot.start, geometry.profiles[name].size, name))
    busy = tuple(one for one in instances if draw.random() < 0.5)
    return GPUCut(geometry, busy, tuple(one for one in instances if one not in busy))


def measure(gpus: int, questions: int, seed: int) -> dict[str, float]:
    """Times of so many questions about so many GPUs, and the share that has a plan."""
    draw = random.Random(f"{seed}/{gpus}")
    times, feasible = [], 0
    for _ in range(questions):
        geometry = GEOMETRIES[draw.choice(list(GEOMETRIES))]
        asked = [cut(geometry, draw) for _ in range(gpus)]
        wanted = draw.choices(list(geometry.profiles), k=draw.randint(1, WANTED_PER_GPU * gpus))
        began = time.perf_counter()
        found = plan(asked, wanted)
        times.append(1000 * (time.perf_counter() - began))
        feasible += found.feasible
    times.sort()
    return {
        "gpus": gpus,
        "p50_ms": times[len(times) // 2],
        "p99_ms": times[len(times) * 99 // 100],
        "longest_ms": times[-1],
        "feasible": feasible / questions,
    }


def main() -> None:
    """Run the benchmark, print the numbers, keep them if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=2000, help="about one GPU; fewer about more")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="write the numbers as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    rows = [measure(gpus, max(1, options.questions // gpus), options.seed) for gpus in SIZES]
    print(f"GPUs   p50 ms   p99 ms   longest   feasible   (bar for one GPU: {BAR_MS:g} ms)")
    for row in rows:
        print(
            f"{row['gpus']:>4}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['longest_ms']:>10.2f}"
            f"{row['feasible']:>11.0%}"
        )
    if options.keep:
        path = keep(options.results, "mig-planner", {"rows": rows, "bar_ms": BAR_MS})
        print(f"kept in {path}")


if __name__ == "__main__":
    main()
