"""What must hold at every moment of a fleet's life, checked on what an observer saw.

Each function returns what it found wrong, in words; nothing found is the empty list. The arithmetic is the
test's own: requests of containers against allocatable of nodes, not what the scheduler makes of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tests.e2e.observer import Sighting

from gpufleet.fleet.quantities import resource_amount
from gpufleet.kube.kinds import GPU_NODES, PODS

Amounts = Mapping[str, int]


def moved(sightings: Iterable[Sighting]) -> list[str]:
    """Pods that were bound to one node and then to another, or to none."""
    node: dict[str, str] = {}
    wrong = []
    for sighting in sightings:
        if sighting.plural == PODS.plural:
            before = node.setdefault(sighting.uid, sighting.node)
            if before and sighting.node != before:
                wrong.append(f"{_name(sighting)} moved from {before} to {sighting.node or 'no node'}")
            node[sighting.uid] = sighting.node
    return wrong


def shared(sightings: Iterable[Sighting]) -> list[str]:
    """GPUs or MIG instances that two containers held at once, also a GPU beside an instance of it."""
    held: dict[str, list[tuple[str, str]]] = {}
    whole: dict[str, str] = {}
    wrong = []
    for sighting in sightings:
        if sighting.plural != GPU_NODES.plural:
            continue
        node, status = sighting.object["metadata"]["name"], sighting.object.get("status", {})
        for gpu in status.get("devices", []):
            whole |= {part["uuid"]: gpu["uuid"] for part in gpu.get("instances", [])}
        held[node] = [
            (device, f"{one['pod']}/{one['container']}")
            for one in status.get("allocations", [])
            for device in one["devices"]
        ]
        if sighting.gone:
            del held[node]
        wrong += _conflicts([pair for pairs in held.values() for pair in pairs], whole)
    return wrong


def _conflicts(held: Iterable[tuple[str, str]], whole: Mapping[str, str]) -> list[str]:
    holders: dict[str, list[str]] = {}
    for device, holder in held:
        holders.setdefault(device, []).append(holder)
    wrong = [f"{device} is held by {', '.join(names)}" for device, names in holders.items() if len(names) > 1]
    for device, names in holders.items():
        if whole.get(device) in holders:
            wrong.append(f"{device} is held by {names[0]}, and its GPU {whole[device]} as well")
    return wrong


def exchanged(sightings: Iterable[Sighting]) -> list[str]:
    """Containers whose devices were others later than at first."""
    first: dict[tuple[str, str, str], list[str]] = {}
    wrong = []
    for sighting in sightings:
        if sighting.plural != GPU_NODES.plural:
            continue
        for one in sighting.object.get("status", {}).get("allocations", []):
            key = (one["podUid"], one["container"], one["resource"])
            before = first.setdefault(key, sorted(one["devices"]))
            if before != sorted(one["devices"]):
                wrong.append(f"{one['pod']}/{one['container']} held {before}, now {sorted(one['devices'])}")
    return wrong


def overcommitted(sightings: Iterable[Sighting], allocatable: Mapping[str, Amounts]) -> list[str]:
    """Nodes whose bound pods that had not finished asked for more than the node has."""
    bound: dict[str, tuple[str, Counter[str]]] = {}
    wrong = []
    for sighting in sightings:
        if sighting.plural != PODS.plural:
            continue
        finished = sighting.object.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if sighting.gone or finished or not sighting.node:
            bound.pop(sighting.uid, None)
        else:
            bound[sighting.uid] = (sighting.node, requests_of(sighting.object))
        if not sighting.partial:
            wrong += _excess(bound.values(), allocatable)
    return wrong


def _excess(bound: Iterable[tuple[str, Counter[str]]], allocatable: Mapping[str, Amounts]) -> list[str]:
    used: dict[str, Counter[str]] = {}
    for node, requests in bound:
        used.setdefault(node, Counter()).update(requests)
    return [
        f"{node} has {allocatable[node].get(resource, 0)} {resource}, its pods ask for {amount}"
        for node, amounts in used.items()
        for resource, amount in amounts.items()
        if amount > allocatable[node].get(resource, 0)
    ]


def refused(sightings: Iterable[Sighting]) -> list[str]:
    """Pods that a node did not take: somebody bound them to room that was not there."""
    return [
        f"{_name(sighting)} was refused by {sighting.node}: {sighting.object['status'].get('message')}"
        for sighting in sightings
        if sighting.plural == PODS.plural
        and sighting.object.get("status", {}).get("reason", "").startswith(("OutOf", "UnexpectedAdmission"))
    ]


def requests_of(pod: Mapping[str, Any]) -> Counter[str]:
    """What a pod asks for: the sum of its containers, a limit counting where there is no request."""
    total: Counter[str] = Counter(pods=1)
    for container in pod["spec"]["containers"]:
        resources = container.get("resources", {})
        for name, quantity in {**resources.get("limits", {}), **resources.get("requests", {})}.items():
            total[name] += resource_amount(name, quantity)
    return total


def amounts_of(node: Mapping[str, Any]) -> dict[str, int]:
    """What a node has for pods."""
    allocatable: Mapping[str, str] = node["status"]["allocatable"]
    return {name: resource_amount(name, quantity) for name, quantity in allocatable.items()}


def _name(sighting: Sighting) -> str:
    return f"pod {sighting.object['metadata']['name']}"
