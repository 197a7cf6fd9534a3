"""The machines of a fleet, and how each looks as a Node object: a pure function of the fleet file.

Labels are the well-known ones, gpufleet's pool and rack, and those that GPU Feature Discovery would write.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gpufleet.devices.inventory import Inventory
from gpufleet.devices.plugin_config import GPU_RESOURCE, PluginConfig, SharedResource, Sharing
from gpufleet.devices.simulated_node import gpu_labels, simulated_inventory
from gpufleet.fleet.products import Product
from gpufleet.fleet.selectors import Taint
from gpufleet.kube.conventions.labels import POOL_LABEL, PURPOSE_LABEL
from gpufleet.kube.gpunode import GPUResource
from gpufleet.kube.times import format_time
from gpufleet.local.controlplane import KUBERNETES_VERSION
from gpufleet.local.fleetfile import Fleet, Group

FLEET_LABEL = "gpufleet.dev/fleet"
RACK_LABEL = "gpufleet.dev/rack"
TAINTS_ANNOTATION = "gpufleet.dev/registered-taints"
LABELS_ANNOTATION = "gpufleet.dev/registered-labels"
HOST_ADDRESS = "127.0.0.1"
POD_ADDRESSES_PER_NODE = 1024
_FIRST_POD_ADDRESS = (10 << 24) | (64 << 16)


class Machine(msgspec.Struct, frozen=True):
    """One node of the fleet. `number` decides the addresses of its pods; `capacity` has quantities apart
    from those of GPU resources; `inventory` is what its GPUs are at first.
    """

    name: str
    number: int
    labels: dict[str, str]
    taints: tuple[Taint, ...]
    capacity: dict[str, str]
    product: Product | None = None
    inventory: Inventory = Inventory()
    config: PluginConfig = PluginConfig()


def machines(fleet: Fleet, fleet_name: str) -> tuple[Machine, ...]:
    """Every node of the fleet, in the order of the file."""
    found: list[Machine] = []
    for group in fleet.groups:
        for number in range(group.count):
            found.append(_machine(group, number, len(found), fleet_name))
    return tuple(found)


def _machine(group: Group, number: int, overall: int, fleet_name: str) -> Machine:
    name = group.node_name(number)
    inventory = simulated_inventory(
        group.product, group.gpus, node=f"{fleet_name}/{name}", profiles=group.profiles
    )
    config = _config(group)
    capacity = {
        "cpu": group.cpu_quantity,
        "memory": group.memory_quantity,
        "ephemeral-storage": group.ephemeral_storage,
        "pods": str(group.pods),
    }
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        FLEET_LABEL: fleet_name,
        POOL_LABEL: group.pool_label,
        **_place(group, number),
        **gpu_labels(inventory, config),
        **group.labels,
    }
    if group.purpose:
        labels[PURPOSE_LABEL] = group.purpose
    return Machine(name, overall, labels, group.node_taints, capacity, group.product, inventory, config)


def _config(group: Group) -> PluginConfig:
    """What the device plugin of the group's nodes is configured with."""
    slicing = group.sharing.time_slicing
    if slicing is None:
        return PluginConfig(mig_strategy="mixed")
    rename = f"{GPU_RESOURCE}.shared" if slicing.rename_by_default else ""
    shared = SharedResource(GPU_RESOURCE, slicing.replicas, rename)
    sharing = Sharing("time-slicing", (shared,), slicing.rename_by_default)
    return PluginConfig(mig_strategy="mixed", sharing=sharing)


def _place(group: Group, number: int) -> dict[str, str]:
    """Region, zone and rack: a rack is filled before the next begins, and lies in one zone."""
    labels = {"topology.kubernetes.io/region": group.region} if group.region else {}
    rack_number = number // group.nodes_per_rack if group.nodes_per_rack else number
    rack = f"{group.name}-r{rack_number}" if group.nodes_per_rack else group.rack
    zone = group.zones[rack_number % len(group.zones)] if group.zones else group.zone
    if rack:
        labels[RACK_LABEL] = rack
    if zone:
        labels["topology.kubernetes.io/zone"] = zone
    return labels


def numbered(found: Iterable[Machine], ranges: Mapping[str, str]) -> list[Machine]:
    """The machines with the numbers that their nodes have, so that running pods keep their addresses.

    `ranges` are the pod ranges of all nodes that exist, by name. A new node gets its place in the fleet file,
    or the next number that no other node has.
    """
    numbers = {
        name: _offset(text.partition("/")[0]) // POD_ADDRESSES_PER_NODE for name, text in ranges.items()
    }
    taken = set(numbers.values())
    ours = list(found)
    for machine in ours:
        if numbers.get(machine.name, -1) < 0:
            free = itertools.chain([machine.number], itertools.count())
            numbers[machine.name] = next(number for number in free if number not in taken)
            taken.add(numbers[machine.name])
    return [msgspec.structs.replace(machine, number=numbers[machine.name]) for machine in ours]


def pod_range(machine: Machine) -> str:
    """The addresses of a node's pods, as the node's podCIDR; unique in the fleet."""
    return f"{pod_address(machine, 0)}/{33 - POD_ADDRESSES_PER_NODE.bit_length()}"


def pod_address(machine: Machine, ordinal: int) -> str:
    """The address of a node's pod number `ordinal`, unique in the fleet; nothing answers there.

    Pods in the host's network get one too: the nodes' own address is loopback, which Services refuse.
    """
    number = _FIRST_POD_ADDRESS + machine.number * POD_ADDRESSES_PER_NODE + ordinal
    return str(ipaddress.IPv4Address(number))


def pod_ordinal(machine: Machine, address: str) -> int | None:
    """The number of the pod that has `address`, None when the address is not of this node's range."""
    ordinal = _offset(address) - machine.number * POD_ADDRESSES_PER_NODE
    return ordinal if 0 <= ordinal < POD_ADDRESSES_PER_NODE else None


def _offset(address: str) -> int:
    """How far behind the first pod address an address is; negative for one that no pod has."""
    try:
        return int(ipaddress.IPv4Address(address)) - _FIRST_POD_ADDRESS
    except ValueError:
        return -1


def node_metadata(machine: Machine) -> dict[str, Any]:
    """The node without taints and status; the annotations say what the fleet file gave it.

    They tell a later start what the file had set before, apart from what people and controllers did since.
    """
    annotations = {
        TAINTS_ANNOTATION: ",".join(str(taint) for taint in machine.taints),
        LABELS_ANNOTATION: ",".join(sorted(machine.labels)),
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": machine.name,
            "labels": machine.labels,
            "annotations": annotations,
        },
        "spec": {
            "providerID": f"gpufleet://{machine.labels[FLEET_LABEL]}/{machine.name}",
            "podCIDR": pod_range(machine),
            "podCIDRs": [pod_range(machine)],
        },
    }


def node_taints(machine: Machine) -> list[dict[str, str]]:
    """The taints that the node registers with."""
    return [_taint_dict(taint) for taint in machine.taints]


def _taint_dict(taint: Taint) -> dict[str, str]:
    body = {"key": taint.key, "effect": taint.effect}
    return body | ({"value": taint.value} if taint.value else {})


def merged_taints(
    machine: Machine, present: list[dict[str, Any]], registered: str
) -> list[dict[str, Any]] | None:
    """The taints after the fleet file changed from `registered`; None when they need no change.

    Only what the file added or removed since changes: taints that people or controllers set or removed stay.
    """
    before, wanted = set(filter(None, registered.split(","))), {str(taint) for taint in machine.taints}
    if before == wanted:
        return None

    def text(taint: dict[str, Any]) -> str:
        return str(Taint(taint["key"], taint["effect"], taint.get("value", "")))

    kept = [taint for taint in present if text(taint) not in before - wanted]
    have = {text(taint) for taint in kept}
    added = [_taint_dict(t) for t in machine.taints if str(t) in wanted - before and str(t) not in have]
    return kept + added


def node_status(machine: Machine, resources: Iterable[GPUResource], port: int, now: float) -> dict[str, Any]:
    """The status of a node that works; `port` is that of the kubelet endpoint."""
    capacity, allocatable = dict(machine.capacity), dict(machine.capacity)
    for one in resources:
        capacity[one.name], allocatable[one.name] = str(one.capacity), str(one.usable)
    return {
        "capacity": capacity,
        "allocatable": allocatable,
        "conditions": _conditions(now),
        "addresses": [
            {"type": "InternalIP", "address": HOST_ADDRESS},
            {"type": "Hostname", "address": machine.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": "00000000-0000-0000-0000-000000000000",
            "containerRuntimeVersion": "gpufleet-sim://1.0",
            "kernelVersion": "6.1.0",
            "kubeProxyVersion": "",
            "kubeletVersion": KUBERNETES_VERSION,
            "machineID": machine.name,
            "operatingSystem": "linux",
            "osImage": "gpufleet simulated node",
            "systemUUID": machine.name,
        },
    }


def _conditions(now: float) -> list[dict[str, str]]:
    rows = (
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "the simulated kubelet is posting ready status"),
    )
    stamp = format_time(now)
    return [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": stamp,
            "lastTransitionTime": stamp,
        }
        for kind, status, reason, message in rows
    ]
