"""What `gpufleet status` shows: a fleet's processes, and what its API server says about GPUs and pods."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import msgspec
import psutil

from gpufleet.cli.output import Cell, Column, styled, table
from gpufleet.cli.usage import GPUCounts, counts, gpus_of
from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.config import load_config
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.kinds import GPU_NODES, NODES, PODS
from gpufleet.kube.objects import Node, Pod
from gpufleet.local.components import API_SERVER
from gpufleet.local.fleetfile import load_fleet
from gpufleet.local.layout import Layout
from gpufleet.local.observed import ComponentState, FleetState, node_ready, observe
from gpufleet.local.settings import read_settings

API_BUDGET_S = 5.0
_NAMED = 5

COLUMNS = (
    Column("COMPONENT"),
    Column("PID", number=True),
    Column("STATE"),
    Column("RESTARTS", number=True),
    Column("UPTIME", number=True, drop=1),
    Column("RSS", number=True, drop=2),
    Column("LAST EXIT", number=True, wide=True),
    Column("LOG", wide=True),
)
_STATE_STYLES = {"running": "green", "starting": "yellow", "backoff": "red", "stopped": "dim"}


class Pods(msgspec.Struct, frozen=True):
    """Pods of all namespaces by phase."""

    running: int | None
    pending: int | None


class Component(msgspec.Struct, frozen=True):
    """One process of the fleet."""

    name: str
    pid: int | None
    state: str
    restarts: int
    last_exit: int | None


class Status(msgspec.Struct, frozen=True):
    """What `status -o json` prints; scripts rely on these names. Counts are null while the API server is
    silent.
    """

    fleet: str
    ready: bool
    kubeconfig: str
    metrics: str
    nodes: int | None
    gpus: GPUCounts
    pods: Pods
    components: tuple[Component, ...]


class Cluster(msgspec.Struct, frozen=True):
    """What the API server says; `missing` nodes stand in the fleet file and have no Node object."""

    nodes: int
    ready_nodes: int
    gpus: GPUCounts
    pods: Pods
    missing: tuple[str, ...] = ()
    cordoned: int = 0


def render(layout: Layout, output: str | None, *, watch: bool) -> str:
    """The status in the form that was asked for."""
    state = observe(layout)
    cluster, problem = read_cluster(layout, state)
    status = status_of(layout, state, cluster)
    if output in ("json", "yaml"):
        return _data(msgspec.to_builtins(status), output, watch=watch)
    return _for_people(layout, status, state, cluster, problem, wide=output == "wide")


def status_of(layout: Layout, state: FleetState, cluster: Cluster | None) -> Status:
    """The status from what the processes and the API server say."""
    unknown = GPUCounts(None, None, None, None)
    return Status(
        fleet=layout.name,
        ready=(
            state.supervised
            and all(component.answering for component in state.components)
            and cluster is not None
            and cluster.ready_nodes == cluster.nodes
            and cluster.nodes > 0
            and not cluster.missing
        ),
        kubeconfig=str(layout.kubeconfig),
        metrics=_metrics(layout),
        nodes=cluster.nodes if cluster else None,
        gpus=cluster.gpus if cluster else unknown,
        pods=cluster.pods if cluster else Pods(None, None),
        components=tuple(
            Component(one.name, one.pid, one.state, one.restarts, one.last_exit) for one in state.components
        ),
    )


def _metrics(layout: Layout) -> str:
    """Where the metrics of all GPUs are listed for Prometheus; empty before the first start."""
    settings = read_settings(layout)
    port = settings.ports.get("exporter") if settings else None
    return f"http://127.0.0.1:{port}/sd" if port else ""


def read_cluster(layout: Layout, state: FleetState) -> tuple[Cluster | None, str]:
    """What the API server says, or None and why it does not."""
    api_server = state.component(API_SERVER)
    if api_server is None or not api_server.pid:
        return None, "the API server is not running"
    try:
        return asyncio.run(_ask(layout)), ""
    except GpufleetError as error:
        return None, error.message
    except TimeoutError:
        return None, f"the API server did not answer within {API_BUDGET_S:.0f} s"


async def _ask(layout: Layout) -> Cluster:
    config = load_config(str(layout.kubeconfig))
    async with (
        asyncio.timeout(API_BUDGET_S),
        Client(config, user_agent="gpufleet-status", deadline=1.0) as client,
    ):
        nodes, pods, gpu_nodes = await asyncio.gather(
            client.list(NODES, type=Node, resource_version="0"),
            client.list(PODS, type=Pod, resource_version="0"),
            _gpu_nodes(client),
        )
    present = {node.metadata.name for node in nodes.items}
    phases = [pod.status.phase for pod in pods.items]
    return Cluster(
        nodes=len(nodes.items),
        missing=tuple(name for name in _wanted_nodes(layout) if name not in present),
        cordoned=sum(node.spec.unschedulable for node in nodes.items),
        ready_nodes=sum(node_ready(node) for node in nodes.items),
        gpus=counts(gpus_of(gpu_nodes)),
        pods=Pods(phases.count("Running"), phases.count("Pending")),
    )


def _wanted_nodes(layout: Layout) -> tuple[str, ...]:
    """The nodes of the fleet file; none when somebody has taken it away or damaged it."""
    try:
        return load_fleet(str(layout.fleet_file))[0].node_names
    except GpufleetError:
        return ()


async def _gpu_nodes(client: Client) -> list[GPUNode]:
    try:
        return (await client.list(GPU_NODES, type=GPUNode, resource_version="0")).items
    except ApiError as error:
        if error.not_found:
            return []
        raise


def _data(data: Any, form: str, *, watch: bool) -> str:
    if form == "yaml":
        import yaml

        return yaml.safe_dump(data, sort_keys=False, explicit_start=watch)
    return json.dumps(data, indent=None if watch else 2) + "\n"


def _for_people(
    layout: Layout,
    status: Status,
    state: FleetState,
    cluster: Cluster | None,
    problem: str,
    *,
    wide: bool,
) -> str:
    gpus, pods = status.gpus, status.pods
    head = styled("ready", "green") if status.ready else styled("not ready", "red")
    if not state.running:
        head = "stopped"
    lines = [f"fleet {status.fleet}: {head}"]
    if cluster is None:
        lines.append(
            f"  {problem}; gpufleet up{_flag(layout)} starts it" if not state.running else f"  {problem}"
        )
    else:
        about = node_lines(cluster, f"gpufleet up{_flag(layout)}")
        lines.append("  nodes       " + "\n              ".join(about))
        lines.append(
            f"  gpus        {gpus.allocated} of {gpus.total} allocated, {gpus.free} free, "
            + styled(f"{gpus.unhealthy} unhealthy", "red" if gpus.unhealthy else "")
        )
        lines.append(f"  pods        {pods.running} running, {pods.pending} pending")
    lines.append(f"  kubeconfig  {status.kubeconfig}")
    if status.metrics:
        lines.append(f"  metrics     {status.metrics}")
    if state.running and not state.supervised:
        lines.append(
            styled(
                f"  ! the supervisor was killed; gpufleet up{_flag(layout)} takes over what still runs",
                "yellow",
            )
        )
    rows = [_row(layout, component) for component in state.components]
    return "\n".join(lines) + "\n\n" + table(COLUMNS, rows, wide=wide)


def node_lines(cluster: Cluster, up: str) -> list[str]:
    """How many nodes there are, and a line about those that should be and are not; `up` brings them back."""
    total = cluster.nodes + len(cluster.missing)
    parts = [f"{cluster.nodes} of {total}" if cluster.missing else str(total)]
    if cluster.ready_nodes < cluster.nodes:
        parts.append(styled(f"{cluster.nodes - cluster.ready_nodes} not ready", "red"))
    if cluster.cordoned:
        parts.append(styled(f"{cluster.cordoned} cordoned", "yellow"))
    lines = [", ".join(parts)]
    if cluster.missing:
        shown = ", ".join(cluster.missing[:_NAMED])
        more = len(cluster.missing) - _NAMED
        names = f"{shown} and {more} more" if more > 0 else shown
        lines.append(styled(f"! deleted: {names}; {up} registers what is missing", "yellow"))
    return lines


def _flag(layout: Layout) -> str:
    return "" if layout.name == "default" else f" --name {layout.name}"


def _row(layout: Layout, component: ComponentState) -> list[str | Cell]:
    uptime, rss = "-", "-"
    if component.pid:
        try:
            process = psutil.Process(component.pid)
            uptime = _duration(time.time() - process.create_time())
            rss = f"{process.memory_info().rss >> 20}Mi"
        except psutil.Error:
            pass
    silent = component.state == "running" and not component.answering
    style = "yellow" if silent else _STATE_STYLES[component.state]
    return [
        component.name,
        str(component.pid or "-"),
        Cell("running, silent" if silent else component.state, style),
        str(component.restarts),
        uptime,
        rss,
        "-" if component.last_exit is None else str(component.last_exit),
        str(layout.log(component.name)),
    ]


def _duration(seconds: float) -> str:
    """Seconds as kubectl writes ages: 42s, 7m, 3h12m, 2d."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 2 * 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60}m"
    return f"{whole // 86_400}d"
