"""How fast pods are bound: gpufleet beside the real kube-scheduler and beside the API server's own ceiling.

3,000 pods of one GPU are created at once on 400 nodes of 8 GPUs, and timed by watch timestamps. The
schedulers take turns on the same control plane and nodes, one at a time, each in a fresh process for each
round; the medians of the rounds are compared. The ratio is gpufleet / kube-scheduler, both of this run.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from benchmarks.contenders import CONTENDERS, OURS, PEER
from benchmarks.fleet import Fleet, fleet, report
from benchmarks.keeping import RESULTS, keep, machine
from benchmarks.nodes import create_nodes, wait_for_nodes
from benchmarks.rounds import Round, measure, prepare_namespace

from gpufleet.kube.client import Client
from gpufleet.kube.config import load_config
from gpufleet.kube.crds import establish
from gpufleet.kube.custom_resources import custom_resources
from gpufleet.local.components import SIMULATED_NODES
from gpufleet.local.fleetfile import load_fleet


async def run_rounds(one: Fleet, options: argparse.Namespace) -> list[Round]:
    """All rounds, the contenders alternating."""
    nodes = load_fleet(options.preset)[0].nodes
    async with Client(load_config(str(one.kubeconfig)), user_agent="benchmark") as client:
        await establish(client, custom_resources())
        if options.silent_nodes:
            await create_nodes(client, nodes)
        else:
            one.start_component(SIMULATED_NODES)
            await wait_for_nodes(client, nodes)
        await prepare_namespace(client)
        rounds = []
        for number in range(options.rounds):
            turn = number % len(options.contenders)
            for name in options.contenders[turn:] + options.contenders[:turn]:
                result = await measure(one, client, name, CONTENDERS[name](one), options.pods)
                rounds.append(result)
                report(
                    f"round {number + 1} of {options.rounds}: {name:<15}{result.pods_per_second:>8.0f} pods/s"
                )
        return rounds


def summary(rounds: list[Round]) -> dict[str, dict[str, Any]]:
    """The medians of each contender, and its worst peaks of memory."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(one.contender for one in rounds):
        own = [one for one in rounds if one.contender == name]
        found[name] = {
            "pods_per_second": round(statistics.median(one.pods_per_second for one in own), 1),
            "told_seconds": round(statistics.median(one.told_seconds for one in own), 2),
            "median_latency_ms": round(statistics.median(one.median_latency_ms for one in own), 1),
            "p99_latency_ms": round(statistics.median(one.p99_latency_ms for one in own), 1),
            "cpu_seconds": round(statistics.median(one.cpu_seconds[name] for one in own), 2),
            "peak_mib": round(max(one.peak_mib[name] for one in own), 1),
        }
    return found


def ratios(medians: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Gpufleet's pods/s over each other contender's, where both were measured."""
    if OURS not in medians:
        return {}
    own = medians[OURS]["pods_per_second"]
    return {name: round(own / other["pods_per_second"], 2) for name, other in medians.items() if name != OURS}


def print_report(options: argparse.Namespace, rounds: list[Round]) -> None:
    """The table that people read."""
    facts, medians = machine(), summary(rounds)
    nodes = "silent nodes" if options.silent_nodes else "simulated kubelets"
    where = f"preset {options.preset} ({nodes})"
    print(f"{options.pods} pods of one GPU on {where}, medians of {options.rounds} rounds")
    print(f"{facts['cores']} cores, {facts['memory_gib']} GiB, Kubernetes {facts['kubernetes']}")
    print(f"{'':<16}{'pods/s':>8}{'median ms':>11}{'p99 ms':>9}{'Events s':>10}{'CPU s':>8}{'peak MiB':>10}")
    for name, row in medians.items():
        print(
            f"{name:<16}{row['pods_per_second']:>8.0f}{row['median_latency_ms']:>11.0f}"
            f"{row['p99_latency_ms']:>9.0f}{row['told_seconds']:>10.1f}{row['cpu_seconds']:>8.1f}{row['peak_mib']:>10.0f}"
        )
    print(
        "memory at the peak (MiB): " + ", ".join(f"{name} {mib:.0f}" for name, mib in peaks(rounds).items())
    )
    for name, ratio in ratios(medians).items():
        print(f"{OURS} / {name}: {ratio:.2f}" + (" (target: at least 1.00)" if name == PEER else ""))


def peaks(rounds: list[Round]) -> dict[str, float]:
    """The highest resident memory of each program in any round, in MiB."""
    names = dict.fromkeys(name for one in rounds for name in one.peak_mib)
    return {name: max(one.peak_mib.get(name, 0.0) for one in rounds) for name in names}


def write_results(options: argparse.Namespace, rounds: list[Round]) -> Path:
    """Keep every round beside the medians and the machine."""
    found = {
        "preset": options.preset,
        "silent_nodes": options.silent_nodes,
        "pods": options.pods,
        "medians": summary(rounds),
        "ratios": ratios(summary(rounds)),
        "peak_mib": peaks(rounds),
        "rounds": msgspec.to_builtins(rounds),
    }
    return keep(options.results, f"scheduler-{'silent-nodes' if options.silent_nodes else 'fleet'}", found)


def main() -> None:
    """Run the benchmark, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="large", help="preset or fleet file with nodes of 8 GPUs")
    parser.add_argument("--pods", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument(
        "--silent-nodes",
        action="store_true",
        help="nodes as mere objects: no simulated kubelet shares the machine",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    with fleet(options.preset, kubelets=not options.silent_nodes) as one:
        rounds = uvloop.run(run_rounds(one, options))
    print_report(options, rounds)
    print(f"kept in {os.path.relpath(write_results(options, rounds))}")


if __name__ == "__main__":
    main()
