"""What the kubelet waits for: registrations after a start and a restart, and the answers to its questions.

The plugin is a process of its own, as the agent is; the kubelet is the small one of the tests, over the same
sockets as the real one. Both are restarted, and after each restart a pod is admitted: a device that was lost
or given twice ends the run. Then questions about random free devices are timed, one after the other as the
kubelet asks them, without picks and with a pod waiting for every device. A call that decides nothing is timed
beside them: the bound of this machine. Then pods with picks are admitted many at a time, and those that
got the devices of another are counted. Last, GPUs of a fake NVML fall ill and get well, and the time is taken
until the kubelet knows it of all their devices.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.exporter import percentiles
from benchmarks.keeping import RESULTS, keep
from tests.fakenvml.library import STATE, build
from tests.node.bindings import Bindings, free_of_doubles
from tests.node.fake_kubelet import Connection, FakeKubelet, get_options
from tests.node.nvml_nodes import NvmlNode
from tests.node.watched_node import watched

from gpufleet.devices.boards import links_of
from gpufleet.devices.device_plugin import DevicePlugin
from gpufleet.devices.picks import Pick, Picks
from gpufleet.devices.plugin_config import PluginConfig, SharedResource, Sharing
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.preferred_allocation import topology
from gpufleet.devices.resources import offer
from gpufleet.devices.simulated_node import simulated_inventory
from gpufleet.fleet.products import find_product
from gpufleet.kube.kubelet import device_plugin_pb2 as pb

GPU, SLICE = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
BARS = {
    "started_s": 1.0,
    "restarted_s": 2.0,
    "Allocate": 5.0,
    "GetPreferredAllocation": 10.0,
    "sick_s": 1.0,
    "well_s": 10.0,
}
"""The slowest of all in seconds, and of the calls what 99 of 100 stay below in milliseconds."""

_ADMITTED_SIZES = (1, 1, 2)
_ORDERS = {
    # how pods come               one unconfirmed pod per count, turns between binding and admission
    "one unconfirmed pod a count": (True,  5),
    "many, nearly as bound":       (False, 5),
    "many, in any order":          (False, 200),
}  # fmt: skip


def offering(gpus: int, profiles: Sequence[str] | None = None, replicas: int = 1) -> PluginNode:
    """A node of H100: whole ones, or each cut into profiles, or each offered several times."""
    product = find_product("h100")
    inventory = simulated_inventory(product, gpus, node="gpu-0", profiles=profiles)
    sharing = Sharing("time-slicing", (SharedResource(GPU, replicas),)) if replicas > 1 else Sharing()
    config = PluginConfig(mig_strategy="mixed", sharing=sharing)
    links = topology(inventory, links_of(product, inventory.gpus))
    return PluginNode(offer(inventory, config), inventory, config, links)


class Shape(NamedTuple):
    """A node, its resource, and the most devices that a container asks for."""

    gpus: int
    profiles: tuple[str, ...] | None
    replicas: int
    resource: str
    most: int

    def node(self) -> PluginNode:
        """What the plugin answers from."""
        return offering(self.gpus, self.profiles, self.replicas)


CUT = Shape(8, ("1g.10gb",) * 7, 1, SLICE, most=4)
SHAPES = {
    "8 GPUs x 7 MIG": CUT,
    "16 GPUs x 10 replicas": Shape(16, None, 10, GPU, most=4),
    "16 whole GPUs": Shape(16, None, 1, GPU, most=8),
}


# ----------------------------------------------------------------------------------- the plugin's process


async def serve(folder: Path) -> None:
    """Be the plugin: lines on stdin start it for a node (with or without picks) and stop it; each is
    answered by the time at which it began to be obeyed.
    """
    running: asyncio.Task[None] | None = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, _, picks = line.strip().partition(",")
        if running:
            running.cancel()
            await asyncio.wait([running])
            running = None
        print(time.monotonic(), flush=True)
        if name:
            plugin = DevicePlugin(folder)
            plugin.update(SHAPES[name].node())
            plugin.picks = waiting(plugin.node, SHAPES[name].resource) if picks else Picks()
            running = asyncio.create_task(plugin.run())


def waiting(node: PluginNode, resource: str) -> Picks:
    """A pod of one device waits for each device of a resource."""
    devices = node.offer.resource(resource).devices
    return Picks(tuple(Pick(f"uid-{n}", "main", resource, (one.id,)) for n, one in enumerate(devices)))


class PluginProcess:
    """The process of the plugin."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    async def start(self, node: str, *, picks: bool = False) -> float:
        """Start the plugin for a node; when that began."""
        return await self._tell(f"{node},{'picks' if picks else ''}")

    async def stop(self) -> None:
        """Stop the plugin, not its process."""
        await self._tell("")

    async def _tell(self, line: str) -> float:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{line}\n")
        self._child.stdin.flush()
        return float(await asyncio.to_thread(self._child.stdout.readline))


@contextlib.contextmanager
def plugin_process(folder: Path) -> Iterator[PluginProcess]:
    """The process for a kubelet's folder; ended with the block."""
    argv = [sys.executable, "-m", "benchmarks.device_plugin", "--serve", str(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield PluginProcess(child)
        assert child.stdin is not None
        child.stdin.close()


# ------------------------------------------------------------------------------------------- measurements


async def restarts(plugin: PluginProcess, kubelet: FakeKubelet, times: int) -> dict[str, float]:
    """Seconds until every device is offered: after starts of the plugin, and after restarts of the kubelet.

    Raises RuntimeError when a device is lost or held twice.
    """
    name = next(name for name, shape in SHAPES.items() if shape is CUT)
    count = len(CUT.node().offer.resource(SLICE).devices)
    started, restarted = [], []
    for turn in range(times):
        began = await plugin.start(name)
        await kubelet.until(lambda: kubelet.allocatable(SLICE) == count)
        started.append(time.monotonic() - began)
        await admitted(kubelet, f"pod-{2 * turn}", count)
        await kubelet.restart()
        began = time.monotonic()
        await kubelet.until(lambda: kubelet.allocatable(SLICE) == count)
        restarted.append(time.monotonic() - began)
        await admitted(kubelet, f"pod-{2 * turn + 1}", count)
        await plugin.stop()
        await kubelet.until(lambda: kubelet.allocatable(SLICE) == 0)
    for pod in tuple(kubelet.pods):
        kubelet.finish(pod)
    return {
        "started_p50_s": percentiles(started)[0],
        "started_s": max(started),
        "restarted_p50_s": percentiles(restarted)[0],
        "restarted_s": max(restarted),
    }


async def admitted(kubelet: FakeKubelet, pod: str, count: int) -> None:
    """Admit a pod of one device, in the place of the oldest where all are held."""
    if len(kubelet.in_use(SLICE)) == count:
        kubelet.finish(kubelet.pods[0])
    await kubelet.admit(pod, {SLICE: 1})
    if not free_of_doubles(kubelet, SLICE) or kubelet.capacity(SLICE) != count:
        raise RuntimeError(f"{kubelet.capacity(SLICE)} of {count} devices, or one is held twice")


async def questions(
    connection: Connection, ids: Sequence[str], sizes: Sequence[int], calls: int
) -> dict[str, list[float]]:
    """Milliseconds of each call: which devices of those that are free, and what a container gets for them."""
    chance, empty = random.Random(7), get_options(connection.channel)
    times: dict[str, list[float]] = {"GetPreferredAllocation": [], "Allocate": [], "an empty call": []}
    for _ in range(calls):
        size = chance.choice(sizes)
        free = set(chance.sample(ids, chance.randint(size, len(ids))))
        began = time.perf_counter()
        chosen = await connection.preferred(free, set(), size)
        asked = time.perf_counter()
        await connection.allocate(chosen)
        got = time.perf_counter()
        await empty(pb.Empty())
        ended = time.perf_counter()
        if len(chosen) != size or not chosen <= free:
            raise RuntimeError(f"asked for {size} devices, got {len(chosen & free)} of those that are free")
        for name, seconds in zip(times, (asked - began, got - asked, ended - got), strict=True):
            times[name].append(1000 * seconds)
    return times


async def answers(
    plugin: PluginProcess, kubelet: FakeKubelet, calls: int
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each call by node, without picks and with them.

    Of those that ask while picks wait, none asks for as many devices as a pick has: it uses up none, and all
    have to be looked at.
    """
    found = {}
    for name, shape in SHAPES.items():
        for picks in (False, True):
            offered = partial(kubelet.healthy, shape.resource)
            await plugin.start(name, picks=picks)
            await kubelet.until(lambda offered=offered: bool(offered()))  # type: ignore[misc]
            sizes, ids = range(2 if picks else 1, shape.most + 1), sorted(offered())
            case = f"{name}, {len(ids)} picks" if picks else name
            found[case] = await questions(kubelet.connection(shape.resource), ids, sizes, calls)
            await plugin.stop()
            await kubelet.until(lambda offered=offered: not offered())  # type: ignore[misc]
    return found


async def swaps(folder: Path, admissions: int, *, strict: bool, disorder: int) -> int:
    """How many of many pods got the devices that were picked for another; raises when two share one."""
    async with contextlib.AsyncExitStack() as stack:
        kubelet, plugin = FakeKubelet(folder), DevicePlugin(folder / "dp")
        await kubelet.start()
        stack.push_async_callback(kubelet.stop)
        plugin.update(CUT.node())
        running = asyncio.create_task(plugin.run())
        stack.callback(running.cancel)
        await kubelet.until(lambda: kubelet.allocatable(SLICE) > 0)
        chance = random.Random(5)
        scheduler = Bindings(kubelet, plugin, SLICE, seed=7, disorder=disorder)
        await scheduler.run([chance.choice(_ADMITTED_SIZES) for _ in range(admissions)], strict=strict)
        if scheduler.admitted != admissions or plugin.picks != Picks():
            raise RuntimeError(f"{scheduler.admitted} of {admissions} pods, {plugin.picks}")
        return scheduler.swaps


async def illness(folder: Path, name: str) -> dict[str, float]:
    """Seconds from an event of the driver until the kubelet knows that no device of a GPU, or each of them,
    may be given out.
    """
    shape, product = SHAPES[name], find_product("h100")
    node, sick = shape.node(), []
    every = len(node.offer.resource(shape.resource).devices) // shape.gpus
    state = folder / f"machine-{shape.gpus}"
    os.environ[STATE] = str(state)
    nvml = NvmlNode(folder / f"host-{shape.gpus}", build(folder), state)
    nvml.show(product, node.inventory)
    async with watched(nvml, folder, node.config) as watching:
        well = dict.fromkeys(range(shape.gpus), (every, every))
        for index in range(shape.gpus):
            began = time.monotonic()
            nvml.change(lambda machine, index=index: machine.xid(index, 95).recover(index, 1))  # type: ignore[misc]
            await watching.until({**well, **dict.fromkeys(range(index + 1), (every, 0))})
            sick.append(time.monotonic() - began)
        began = time.monotonic()
        for index in range(shape.gpus):
            nvml.change(lambda machine, index=index: machine.recover(index, 0))  # type: ignore[misc]
        await watching.until(well)
        ended = time.monotonic()
    nvml.close()
    return {"sick_p50_s": percentiles(sick)[0], "sick_s": max(sick), "well_s": ended - began}


# ------------------------------------------------------------------------------------------------ the run


@contextlib.asynccontextmanager
async def beside_kubelet(folder: Path) -> AsyncIterator[tuple[PluginProcess, FakeKubelet]]:
    """The process of a plugin that has nothing to do yet, and a kubelet."""
    kubelet = FakeKubelet(folder)
    await kubelet.start()
    try:
        with plugin_process(kubelet.plugins) as plugin:
            await plugin.stop()
            yield plugin, kubelet
    finally:
        await kubelet.stop()


async def run(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure everything; print it as it comes."""
    with tempfile.TemporaryDirectory(prefix="gf-") as folder:
        async with beside_kubelet(Path(folder)) as (plugin, kubelet):
            numbers = {"restarts": await restarts(plugin, kubelet, options.restarts)}
            print(f"{options.restarts} restarts of the plugin and of the kubelet, no device lost or doubled")
            show(numbers["restarts"], "s")
            for case, times in (await answers(plugin, kubelet, options.calls)).items():
                numbers[case] = {name: percentiles(found)[1] for name, found in times.items()}
                print(f"{case}: p99 of {options.calls} calls")
                show(numbers[case], "ms")
        print(f"{options.admissions} admissions with picks, no device doubled")
        for case, (strict, disorder) in _ORDERS.items():
            swapped = await swaps(Path(folder), options.admissions, strict=strict, disorder=disorder)
            numbers[case] = {"swapped_percent": 100 * swapped / options.admissions}
            print(f"  {case:<28}{swapped:>5} swapped ({numbers[case]['swapped_percent']:.1f} %)", flush=True)
        for name in ("8 GPUs x 7 MIG", "16 GPUs x 10 replicas"):
            numbers[f"{name}, sick"] = await illness(Path(folder), name)
            print(f"{name}: one GPU after the other falls ill, then all are repaired")
            show(numbers[f"{name}, sick"], "s")
    return numbers


def show(numbers: dict[str, float], unit: str) -> None:
    """Print numbers with their bars."""
    for name, number in numbers.items():
        bar = f"  (bar: {BARS[name]:g})" if name in BARS else ""
        print(f"  {name.removesuffix('_s'):<24}{number:>9.3f} {unit}{bar}", flush=True)


def main() -> None:
    """Run the benchmark, print the numbers with their bars, keep them if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--restarts", type=int, default=50, help="of the plugin, and of the kubelet")
    parser.add_argument("--calls", type=int, default=1000, help="questions to each node")
    parser.add_argument("--admissions", type=int, default=2000, help="of pods with picks, at once")
    parser.add_argument("--keep", action="store_true", help="write the numbers as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    numbers = asyncio.run(run(options))
    if options.keep:
        path = keep(options.results, "device-plugin", {"numbers": numbers, "bars": BARS})
        print(f"kept in {path}")


if __name__ == "__main__":
    main()
