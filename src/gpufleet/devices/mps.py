"""MPS: processes of several containers use a GPU at once, each within limits of memory and of threads.

One control daemon serves one shared resource with all its GPUs. It is told the limits of a client before the
first one comes: the memory by the index of the GPU (a UUID is passed over without a word), the threads as a
percentage. What the daemon says is a ceiling; variables of a container can only lower it. So a client that
may hold one replica is bound by the daemon, whatever its container does. Where the config lets a container
hold several, the ceiling is what the most replicas are worth, and each container is given the part that it
holds: that binds those who keep their variables.

A GPU joins a daemon when nobody uses it, for a process that runs on it without MPS would keep the server out,
and leaves when its last client has ended. Which GPUs a daemon has now is thus a function of what is wanted,
what it has, and what is in use (`next_daemons`); nothing is ever taken from a running pod.
Source: k8s-device-plugin cmd/mps-control-daemon and internal/plugin/mps.go; NVIDIA's MPS guide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from gpufleet.devices.allocation import Grant, Mount
from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.plugin_config import PluginConfig
from gpufleet.devices.resources import Device, Offer, Resource, Withheld
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.sharing import mps_clients

REASONS = {
    "MpsWithMig": "a GPU of the node is in MIG mode, and a server refuses to start beside one",
    "MpsTooManyClients": "the config has more replicas than an MPS server of this GPU takes clients",
    "MpsLimitsUnsupported": "clients cannot be limited on a GPU before Volta",
    "MpsPartlyShared": "the resource has whole GPUs and replicas under one name",
    "MpsRootTooLong": "the path of the control socket is longer than a socket's path may be",
    "MpsGpuBusy": "a pod uses the GPU without MPS; it is shared when that pod has ended",
    "MpsDraining": "the GPU is no longer shared by this daemon, and has clients until the last one ends",
    "MpsNotReady": "the control daemon does not answer yet, or does not answer any more",
}
"""Why a GPU is not shared now, or a client is refused."""

PIPE_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
LOG_VARIABLE = "CUDA_MPS_LOG_DIRECTORY"
MEMORY_VARIABLE = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
THREADS_VARIABLE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
ORDER_VARIABLE = "CUDA_DEVICE_ORDER"

RECORD = "daemon.json"
"""The file beside the pipe folder of a daemon of ours: what it was told last, for the next agent.

It is there from before the daemon starts until it was stopped: a pipe without it is somebody else's.
"""

PROBE = "get_default_active_thread_percentage"
QUIT = "quit"
SERVERS = "get_server_list"

_CONTAINER_ROOT = "/mps"
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where CUDA looks for it in a container
_LONGEST_SOCKET = "control_privileged"
_PATH_BYTES = 107


class MpsGPU(msgspec.Struct, frozen=True, order=True):
    """A GPU of a daemon. `index` is NVML's, memory is in MiB (0: unknown, so not limited)."""

    index: int
    uuid: str
    memory_mib: int = 0


class MpsDaemon(msgspec.Struct, frozen=True):
    """The control daemon of a resource: its GPUs by index, and in how many parts each of them is shared.

    `ceiling` is how many parts of a GPU one container may hold.
    """

    resource: str
    gpus: tuple[MpsGPU, ...]
    replicas: int
    ceiling: int = 1

    def memory_mib(self, gpu: MpsGPU, parts: int) -> int:
        """The memory that so many parts of a GPU are, in MiB."""
        return gpu.memory_mib * parts // self.replicas

    def thread_percentage(self, parts: int) -> int:
        """The threads that so many parts of a GPU are, in percent and at least one."""
        return max(1, 100 * parts // self.replicas)

    def gpu(self, uuid: str) -> MpsGPU | None:
        """The GPU of a UUID."""
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)


class MpsPlan(msgspec.Struct, frozen=True):
    """The daemons that a node should have, by resource, and the GPUs that cannot be shared as configured."""

    daemons: tuple[MpsDaemon, ...] = ()
    withheld: tuple[Withheld, ...] = ()

    def daemon(self, resource: str) -> MpsDaemon | None:
        """The daemon of a resource (as it is offered)."""
        return next((one for one in self.daemons if one.resource == resource), None)

    def refusal(self, gpu: str) -> Withheld | None:
        """Why a GPU is not shared."""
        return next((one for one in self.withheld if one.gpu == gpu), None)


def plan_daemons(offer: Offer, inventory: Inventory, config: PluginConfig, root: str = "") -> MpsPlan:
    """What the config wants: a daemon for each shared resource that has a GPU which can be shared.

    A GPU that the driver has lost is left out: its replicas are unhealthy already. `root` is where the MPS
    root is seen by the daemons, if not where the config has it.
    """
    if config.sharing.strategy != "mps":
        return MpsPlan()
    several = not config.sharing.fail_requests_greater_than_one
    daemons, withheld = [], []
    for resource in offer.resources:
        replicas = Counter(device.gpu for device in resource.devices if device.replica)
        found = [gpu for gpu in inventory.gpus if gpu.uuid in replicas and not gpu.lost]
        refused = list(_refused(resource, found, replicas, inventory, root or config.mps_root))
        withheld += refused
        left = [gpu for gpu in found if gpu.uuid not in {one.gpu for one in refused}]
        if left:
            parts = max(replicas[gpu.uuid] for gpu in left)
            gpus = tuple(sorted(MpsGPU(gpu.index, gpu.uuid, gpu.memory_mib) for gpu in left))
            daemons.append(MpsDaemon(resource.name, gpus, parts, parts if several else 1))
    return MpsPlan(tuple(daemons), tuple(withheld))


def _refused(
    resource: Resource,
    gpus: Sequence[GPU],
    replicas: Mapping[str, int],
    inventory: Inventory,
    root: str,
) -> Iterator[Withheld]:
    """The GPUs of a resource that cannot be shared, each with the first reason."""
    whole = any(not device.replica for device in resource.devices)
    cut = [str(gpu.index) for gpu in inventory.gpus if gpu.mig == "on"]
    room = _PATH_BYTES - len(pipe_folder(root, resource.name).encode()) - len(_LONGEST_SOCKET) - 1
    for gpu in gpus:
        most, wanted, where = mps_clients(gpu.capability), replicas[gpu.uuid], f"GPU {gpu.index}"
        if cut:
            yield Withheld("MpsWithMig", f"MIG is on for GPU {', '.join(cut)}", gpu.uuid)
        elif whole:
            message = f"{resource.name} has replicas and whole GPUs; give the replicas a name by `rename`"
            yield Withheld("MpsPartlyShared", message, gpu.uuid)
        elif room < 0:
            message = f"the MPS root {root} is {-room} bytes too long for {resource.name}"
            yield Withheld("MpsRootTooLong", message, gpu.uuid)
        elif not most:
            version = ".".join(map(str, gpu.capability))
            yield Withheld("MpsLimitsUnsupported", f"{where} has compute capability {version}", gpu.uuid)
        elif wanted > most:
            message = f"{where}: {wanted} replicas, and a server takes {most} clients"
            yield Withheld("MpsTooManyClients", message, gpu.uuid)


def next_daemons(
    wanted: Sequence[MpsDaemon], running: Sequence[MpsDaemon], busy: Collection[str]
) -> tuple[tuple[MpsDaemon, ...], tuple[Withheld, ...]]:
    """The daemons that should run now, and which GPUs wait for pods to end, and why.

    `busy` are UUIDs of GPUs that a pod holds. A daemon keeps what it has while it is wanted or in use, and
    gets a wanted GPU when nobody uses it and no other daemon has it. Applied again and again while pods end,
    this reaches what is wanted.
    """
    goals, have = {one.resource: one for one in wanted}, {one.resource: one for one in running}
    taken = {gpu.uuid: one.resource for one in running for gpu in one.gpus}
    daemons, waiting = [], []
    for resource in sorted({*goals, *have}):
        goal = goals.get(resource)
        mine = have[resource].gpus if resource in have else ()
        aim = goal.gpus if goal else ()
        leaving = [gpu for gpu in mine if goal is None or goal.gpu(gpu.uuid) is None]
        drained = [gpu for gpu in leaving if gpu.uuid in busy]
        for gpu in drained:
            waiting.append(Withheld("MpsDraining", f"GPU {gpu.index}: {resource} has clients", gpu.uuid))
        kept = []
        for gpu in aim:
            if taken.get(gpu.uuid) == resource or (gpu.uuid not in taken and gpu.uuid not in busy):
                kept.append(gpu)
            else:
                other = taken.get(gpu.uuid)
                who = f"the daemon of {other}" if other else "a pod without MPS"
                waiting.append(Withheld("MpsGpuBusy", f"GPU {gpu.index} belongs to {who}", gpu.uuid))
        if gpus := tuple(sorted((*kept, *drained))):
            daemons.append(msgspec.structs.replace(goal or have[resource], gpus=gpus))
    return tuple(daemons), tuple(waiting)


def pipe_folder(root: str, resource: str) -> str:
    """The folder of a daemon's sockets below the MPS root."""
    return f"{root.rstrip('/')}/{resource}/pipe"


def log_folder(root: str, resource: str) -> str:
    """The folder of a daemon's logs below the MPS root."""
    return f"{root.rstrip('/')}/{resource}/log"


def shared_memory_folder(root: str) -> str:
    """The shared memory of all servers and clients below the MPS root: what daemons see as /dev/shm."""
    return f"{root.rstrip('/')}/shm"


def daemon_variables(root: str, resource: str) -> dict[str, str]:
    """The variables of a control daemon and of whoever talks to it. CUDA counts GPUs as NVML does, so that
    the indexes of limits are those of the inventory.
    """
    return {
        PIPE_VARIABLE: pipe_folder(root, resource),
        LOG_VARIABLE: log_folder(root, resource),
        ORDER_VARIABLE: "PCI_BUS_ID",
    }


def limit_commands(daemon: MpsDaemon) -> tuple[str, ...]:
    """What a daemon is told before it has clients: the ceiling of each, on every GPU."""
    ceiling = daemon.ceiling
    memory = (
        f"set_default_device_pinned_mem_limit {gpu.index} {daemon.memory_mib(gpu, ceiling)}M"
        for gpu in daemon.gpus
        if gpu.memory_mib
    )
    return (*memory, f"set_default_active_thread_percentage {daemon.thread_percentage(ceiling)}")


def server_commands(daemon: MpsDaemon, server: int) -> tuple[str, ...]:
    """The same for a server that runs already (its pid): a default counts only for servers still to come.
    Clients that it has keep their limits.
    """
    ceiling = daemon.ceiling
    memory = (
        f"set_device_pinned_mem_limit {server} {gpu.index} {daemon.memory_mib(gpu, ceiling)}M"
        for gpu in daemon.gpus
        if gpu.memory_mib
    )
    return (*memory, f"set_active_thread_percentage {server} {daemon.thread_percentage(ceiling)}")


def client_grant(plan: MpsPlan, resource: str, devices: Sequence[Device], root: str) -> Grant:
    """What a container gets on top of its devices: the way to its server, and its limits; nothing for
    devices that are not shared. `root` is the MPS root on the host.

    Memory is limited by the number that the container counts a GPU under, which is its place among those
    that it sees. Threads have one limit for all GPUs: that of the GPU of which it holds the least.
    Raises GpufleetError (MpsNotReady) for a replica of a GPU that is not shared after all.
    """
    parts = Counter(device.gpu for device in devices if device.replica)
    daemon = plan.daemon(resource)
    for uuid in parts:
        if refusal := plan.refusal(uuid):
            raise not_ready(resource, f"{REASONS[refusal.reason]} ({refusal.message})")
    if daemon is None or not parts:
        return Grant()
    gpus = sorted(gpu for uuid in parts if (gpu := daemon.gpu(uuid)) is not None)
    if len(gpus) < len(parts):
        raise not_ready(resource, "the daemon does not have this GPU")
    pipe = pipe_folder(_CONTAINER_ROOT, resource)
    memory = [
        f"{place}={daemon.memory_mib(gpu, min(parts[gpu.uuid], daemon.ceiling))}M"
        for place, gpu in enumerate(gpus)
        if gpu.memory_mib
    ]
    least = min(*parts.values(), daemon.ceiling)
    envs = {PIPE_VARIABLE: pipe, THREADS_VARIABLE: str(daemon.thread_percentage(least))}
    if memory:
        envs[MEMORY_VARIABLE] = ",".join(memory)
    return Grant(
        envs,
        (
            Mount(pipe_folder(root, resource), pipe),
            Mount(shared_memory_folder(root), _SHARED_MEMORY),
        ),
    )


def not_ready(resource: str, why: str) -> GpufleetError:
    """The error of a client that cannot be served now."""
    return GpufleetError(
        reason="MpsNotReady",
        message=f"{resource} is shared by MPS, and its control daemon does not serve now: {why}",
        hint="look at the agent's log, or share this node by time-slicing",
    )
