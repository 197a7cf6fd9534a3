"""What the exporter of a full node costs: seconds of a scrape, memory, and share of a core.

The node has 8 GPUs of 7 MIG instances with a pod on each: 64 GPUs and instances of 26 or more series. A
process like the agent serves it: the observer and the sampler on a simulated driver, the kubelet's pod
resources over gRPC, the page over HTTP. What a real driver costs comes on top. First scrapes follow each
other without a pause, then the processor time of a quiet while is taken with one scrape an interval, then the
driver hangs and scrapes are timed again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from benchmarks.keeping import RESULTS, keep

from gpufleet.devices.boards import make_inventory
from gpufleet.devices.clocks import RunningClock
from gpufleet.devices.exporter import Exporter
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.ledger import BoundPod, allocations
from gpufleet.devices.observer import Observer
from gpufleet.devices.sampling import INTERVAL_S, Sampler
from gpufleet.devices.simulated_backend import SimulatedBackend
from gpufleet.devices.timeline import Hang
from gpufleet.fleet.products import find_product
from gpufleet.kube.kubelet import pod_resources_pb2 as pb
from gpufleet.kube.kubelet.pod_resources import PodResources

NODE, RESOURCE, PROFILE, INSTANCES, GPUS = "gpu-0", "nvidia.com/mig-1g.10gb", "1g.10gb", 7, 8
BARS = {"p99_ms": 20.0, "plain_p99_ms": 20.0, "hanging_p99_ms": 20.0, "rss_mib": 120.0, "cpu_percent": 3.0}
SETTLE_S = 2.0
_HANG, _HANG_S = "hang\n", 3600.0


def backend() -> SimulatedBackend:
    """The node's driver."""
    product = find_product("h100")
    made = SimulatedBackend(product, make_inventory(product, GPUS, node=NODE), RunningClock())
    for gpu in made.inventory().gpus:
        made.set_mig_mode(gpu.uuid, on=True)
        for start in range(INSTANCES):
            made.create_compute_instance(gpu.uuid, made.create_gpu_instance(gpu.uuid, PROFILE, start))
    return made


def devices(inventory: Inventory) -> list[str]:
    """UUIDs of the MIG devices."""
    return [one.compute[0].uuid for gpu in inventory.gpus for one in gpu.instances]


async def serve(socket: Path) -> None:
    """Be the process that is measured: print the port, hang the driver at a line on stdin, end at its end."""
    driver, exporter = backend(), Exporter()
    node = exporter.add(NODE)
    observer = Observer(driver, lambda seen: node.observed(seen.inventory))
    sampler = Sampler(driver, node.sampled, node.driver, shared=node.shared_gpus)
    observer.start()
    sampler.start()
    async with PodResources(socket) as kubelet, exporter.serving(0, "127.0.0.1") as port:
        following = asyncio.create_task(follow(kubelet, node.held))
        print(port, flush=True)
        while await asyncio.to_thread(sys.stdin.readline) == _HANG:
            driver.play([Hang(at=0, call="all", seconds=_HANG_S)])
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    driver.close()
    observer.stop()
    sampler.stop()


async def follow(kubelet: PodResources, held: Any) -> None:
    """Ask the kubelet at the interval who holds what."""
    while True:
        began = time.monotonic()
        listed = await kubelet.pods()
        pods = [BoundPod(one.namespace, one.name, f"uid-{one.name}") for one in listed]
        held(allocations(listed, pods, (), frozenset((RESOURCE,))), time.monotonic() - began)
        await asyncio.sleep(INTERVAL_S)


@contextlib.asynccontextmanager
async def kubelet(socket: Path) -> AsyncIterator[None]:
    """A kubelet that has given every MIG device to a pod."""
    answer = pb.ListPodResourcesResponse(
        pod_resources=[
            pb.PodResources(
                name=f"pod-{number:02}",
                namespace="bench",
                containers=[
                    pb.ContainerResources(
                        name="main",
                        devices=[pb.ContainerDevices(resource_name=RESOURCE, device_ids=[device])],
                    )
                ],
            )
            for number, device in enumerate(devices(backend().inventory()))
        ]
    ).SerializeToString()

    async def listed(request: bytes, context: Any) -> bytes:
        return answer

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "List": grpc.unary_unary_rpc_method_handler(listed)
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("v1.PodResourcesLister", handlers),)
    )
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


def scrape(connection: http.client.HTTPConnection, encoding: str = "gzip") -> tuple[float, bytes]:
    """Milliseconds of one scrape, compressed as Prometheus asks for it or not, and what came."""
    began = time.perf_counter()
    connection.request("GET", "/metrics", headers={"Accept-Encoding": encoding})
    body = connection.getresponse().read()
    return 1000 * (time.perf_counter() - began), body


def check(page: str) -> None:
    """Raise RuntimeError unless the page is that of a full node with its pods."""
    series = [line for line in page.splitlines() if line.startswith("DCGM_FI_")]
    entities = [line for line in series if line.startswith("DCGM_FI_DEV_FB_USED{")]
    pods = sum("pod=" in line for line in entities)
    if (len(entities), pods) != (GPUS * (INSTANCES + 1), GPUS * INSTANCES) or len(series) < 26 * len(
        entities
    ):
        raise RuntimeError(f"{len(series)} series of {len(entities)} GPUs and instances, {pods} of them held")


def percentiles(times: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    ordered = sorted(times)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def measure(options: argparse.Namespace, socket: Path) -> dict[str, float]:
    """Start the process, measure it, end it."""
    argv = [sys.executable, "-m", "benchmarks.exporter", "--serve", str(socket)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(child.stdout.readline()), timeout=30)
        time.sleep(SETTLE_S)
        check(scrape(connection, "identity")[1].decode())
        process = psutil.Process(child.pid)
        compressed = [scrape(connection)[0] for _ in range(options.scrapes)]
        plain = [scrape(connection, "identity")[0] for _ in range(options.scrapes)]
        cpu = cpu_percent(process, connection, options.intervals)
        rss = process.memory_info().rss / 2**20
        child.stdin.write(_HANG)
        child.stdin.flush()
        time.sleep(SETTLE_S)
        hanging = [scrape(connection)[0] for _ in range(options.scrapes)]
        connection.close()
        child.stdin.close()
    return {
        "p50_ms": percentiles(compressed)[0],
        "p99_ms": percentiles(compressed)[1],
        "plain_p99_ms": percentiles(plain)[1],
        "hanging_p99_ms": percentiles(hanging)[1],
        "rss_mib": rss,
        "cpu_percent": cpu,
    }


def cpu_percent(process: psutil.Process, connection: http.client.HTTPConnection, intervals: int) -> float:
    """Share of one core, in percent, over some intervals with a scrape in each."""
    before, began = process.cpu_times(), time.monotonic()
    for _ in range(intervals):
        time.sleep(INTERVAL_S)
        scrape(connection)
    after, elapsed = process.cpu_times(), time.monotonic() - began
    return 100 * (after.user + after.system - before.user - before.system) / elapsed


async def run(options: argparse.Namespace) -> dict[str, float]:
    """Measure with a kubelet beside it."""
    with tempfile.TemporaryDirectory(prefix="gf-") as folder:
        socket = Path(folder) / "kubelet.sock"
        async with kubelet(socket):
            return await asyncio.to_thread(measure, options, socket)


def main() -> None:
    """Run the benchmark, print the numbers with their bars, keep them if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scrapes", type=int, default=500)
    parser.add_argument(
        "--intervals", type=int, default=2, help="quiet intervals of 15 s for the processor time"
    )
    parser.add_argument("--keep", action="store_true", help="write the numbers as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    numbers = asyncio.run(run(options))
    print(f"{GPUS} GPUs of {INSTANCES} instances with pods, {options.scrapes} scrapes")
    for name, number in numbers.items():
        print(f"{name:<16}{number:>10.2f}" + (f"  (bar: {BARS[name]:g})" if name in BARS else ""))
    if options.keep:
        path = keep(options.results, "exporter", {"numbers": numbers, "bars": BARS})
        print(f"kept in {path}")


if __name__ == "__main__":
    main()
