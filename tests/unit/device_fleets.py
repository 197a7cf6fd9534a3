"""Nodes whose agents report their devices, and pods that ask for those, in every state between their binding
and their end: for tests of picks. What the checks count, they count by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import msgspec
from hypothesis import strategies as st
from tests.unit.fleets import node, pod

from gpufleet.fleet.devices import (
    DeviceClaim,
    DevicePick,
    HeldDevices,
    NodeDevices,
    NodeGPU,
    Offered,
    Part,
    pools_of,
)
from gpufleet.fleet.links import Rows
from gpufleet.fleet.mig import mig_resource
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind, Plan
from gpufleet.fleet.pods import GANG_LABELS_RULE, GangRef, Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of

GPU = "nvidia.com/gpu"
SHARED = "nvidia.com/gpu.shared"
SLICE = "nvidia.com/mig-1g.10gb"
HALF = "nvidia.com/mig-3g.40gb"
SCORES = (10, 20, 50, 410)
"""Of pairs of GPUs: on two processors, one processor, one switch, four NVLinks."""


def gpu(index: int) -> str:
    """The UUID of a GPU."""
    return f"GPU-{index}"


def instance(index: int, number: int) -> str:
    """The UUID of a MIG instance of a GPU."""
    return f"MIG-{index}-{number}"


def pairs(count: int, score: Mapping[int, int] | None = None, *, island: int = 0) -> Rows:
    """Links of a node: islands of GPUs that NVLink connects, all others by way of the processors; or by a
    number for each pair, as they come.
    """
    rows = []
    for one in range(count):
        row = []
        for other in range(one):
            if score is not None:
                row.append(score[one * count + other])
            else:
                row.append(410 if island and one // island == other // island else 10)
        rows.append(tuple(row))
    return tuple(rows)


def whole(count: int, links: Rows = (), sick: Sequence[int] = ()) -> NodeDevices:
    """A node of uncut GPUs."""
    return _node(
        [NodeGPU(Part(gpu(i), gpu(i), i not in sick)) for i in range(count)],
        {GPU: Offered(count, count - len(sick))},
        links,
    )


def shared(count: int, replicas: int) -> NodeDevices:
    """A node of uncut GPUs that are shared."""
    gpus = [NodeGPU(Part(gpu(i), gpu(i))) for i in range(count)]
    return _node(gpus, {SHARED: Offered(count * replicas, count * replicas)}, ())


def cut(*profiles: Sequence[str]) -> NodeDevices:
    """A node whose GPUs are cut, each into instances of these profiles."""
    gpus = [
        NodeGPU(
            Part(gpu(i), gpu(i)),
            mig=True,
            instances=tuple((name, Part(instance(i, number), gpu(i))) for number, name in enumerate(names)),
        )
        for i, names in enumerate(profiles)
    ]
    counts = Counter(mig_resource(name) for names in profiles for name in names)
    return _node(gpus, {name: Offered(count, count) for name, count in counts.items()}, ())


def _node(gpus: Sequence[NodeGPU], offered: Mapping[str, Offered], links: Rows) -> NodeDevices:
    return NodeDevices(tuple(gpus), links, pools_of(gpus, offered))


def machine(devices: NodeDevices, name: str = "a") -> Node:
    """The node of these devices, with room for everything else."""
    amounts = {
        resource: sum(part.usable for part in pool.parts) * pool.replicas
        for resource, pool in devices.pools.items()
    }
    return node(name, resources=amounts)


def asking(
    name: str, *counts: int, resource: str = GPU, gang: str = "", members: int = 1, created: float = 0.0
) -> Pod:
    """A pod of one container for each count."""
    claims = tuple(DeviceClaim(f"c{i}", resource, count) for i, count in enumerate(counts))
    found = pod(name, resources={resource: sum(counts)}, created=created)
    return msgspec.structs.replace(
        found,
        device_claims=claims,
        gang=GangRef(gang, members, GANG_LABELS_RULE) if gang else None,
    )


def given_to(subject: Pod, *devices: Sequence[str], node: str = "a", phase: str = "Pending") -> Pod:
    """The pod after it was bound with these picks, by container."""
    picks = tuple(
        DevicePick(claim.container, claim.resource, tuple(picked))
        for claim, picked in zip(subject.device_claims, devices, strict=True)
    )
    return msgspec.structs.replace(subject, node=node, phase=phase, picks=picks)


def unpicked(subject: Pod, node: str = "a", phase: str = "Pending") -> Pod:
    """The pod after somebody bound it without picks."""
    return msgspec.structs.replace(subject, node=node, phase=phase)


def holding(devices: NodeDevices, *held: tuple[Pod, Sequence[str]]) -> NodeDevices:
    """The devices once it is confirmed who holds them."""
    found = tuple(
        HeldDevices(
            holder.uid,
            holder.device_claims[0].container,
            holder.device_claims[0].resource,
            tuple(uuids),
            shared=devices.pools[holder.device_claims[0].resource].replicas > 1,
        )
        for holder, uuids in held
    )
    return msgspec.structs.replace(devices, held=devices.held + found)


def fleet(devices: NodeDevices, *pods: Pod) -> Snapshot:
    """One node of these devices, and pods."""
    return snapshot_of((machine(devices),), pods, devices={"a": devices})


def picks(plan: Plan) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Pod name to the devices of each of its containers, of those that are bound."""
    return {
        action.pod.name: tuple(pick.devices for pick in action.picks)
        for action in plan.actions
        if isinstance(action, Bind)
    }


# what the checks know: how often each device is used, and what tells one pick from another


def used(snapshot: Snapshot) -> Counter[str]:
    """How often each device of node a is held, or promised to a pod that is not confirmed."""
    devices = snapshot.devices["a"]
    there = snapshot.pods_by_node.get("a", {}).values()
    living = {one.uid for one in there}
    found: Counter[str] = Counter()
    for held in devices.held:
        if held.pod_uid in living:
            found.update(held.devices)
    confirmed = {held.pod_uid for held in devices.held}
    for one in there:
        if one.uid not in confirmed:
            for pick in one.picks:
                found.update(pick.devices)
    return found


def score(devices: NodeDevices, uuids: Iterable[str]) -> int:
    """The sum of the scores of all pairs of GPUs."""
    chosen = set(uuids)
    places = [place for place, one in enumerate(devices.gpus) if one.whole.uuid in chosen]
    return sum(devices.links[other][one] for one, other in combinations(places, 2)) if devices.links else 0


def quality(devices: NodeDevices, resource: str, uuids: Sequence[str]) -> object:
    """What two picks for one question must have in common so that nobody minds which is whose."""
    if devices.pools[resource].whole:
        return score(devices, uuids)
    owners = {part.uuid: part.gpu for part in devices.pools[resource].parts}
    return sorted(owners[uuid] for uuid in uuids)


@st.composite
def reported(draw: st.DrawFn) -> tuple[NodeDevices, str]:
    """The devices of a node, and the resource that pods ask for there."""
    kind = draw(st.sampled_from(["whole", "whole", "shared", "cut"]))
    if kind == "whole":
        count = draw(st.integers(1, 6))
        numbers = st.lists(st.sampled_from(SCORES), min_size=count * count, max_size=count * count)
        links = pairs(count, dict(enumerate(draw(numbers)))) if draw(st.booleans()) else ()
        sick = draw(st.lists(st.integers(0, count - 1), max_size=1))
        return whole(count, links, sick), GPU
    if kind == "shared":
        return shared(draw(st.integers(1, 3)), draw(st.integers(2, 4))), SHARED
    cuts = draw(st.lists(st.sampled_from([("1g.10gb",) * 3, ("1g.10gb", "3g.40gb")]), min_size=1, max_size=3))
    return cut(*cuts), SLICE


@st.composite
def in_flight(draw: st.DrawFn) -> Snapshot:
    """A node with pods that are confirmed, bound a moment ago with or without picks, over, and waiting."""
    devices, resource = draw(reported())
    pool = devices.pools[resource]
    free = [part.uuid for part in pool.parts if part.usable for _ in range(pool.replicas)]
    free = draw(st.permutations(free))
    pods: list[Pod] = []
    for number in range(draw(st.integers(0, 5))):
        count = draw(st.integers(1, 2))
        if count > len(free):
            break
        subject = asking(f"there{number}", count, resource=resource)
        mine, rest = free[:count], free[count:]
        state = draw(st.sampled_from(["confirmed", "picked", "picked", "running", "unpicked", "over"]))
        if state == "confirmed":
            devices = holding(devices, (subject, mine))
            pods.append(unpicked(subject, phase=draw(st.sampled_from(["Pending", "Running"]))))
        elif state == "over":
            devices = holding(devices, (subject, mine))
            continue
        elif state == "unpicked":
            if draw(st.booleans()):
                continue
            pods.append(unpicked(subject))
        else:
            pods.append(given_to(subject, mine, phase="Running" if state == "running" else "Pending"))
        free = rest
    for number in range(draw(st.integers(1, 5))):
        counts = draw(st.lists(st.integers(1, 2), min_size=1, max_size=2))
        gang = draw(st.sampled_from(["", "", "g"]))
        pods.append(asking(f"new{number}", *counts, resource=resource, gang=gang, created=float(number)))
    return fleet(devices, *pods)


def settling(snapshot: Snapshot) -> Iterator[Pod]:
    """Pods of node a whose kubelet may be about to give them devices."""
    confirmed = {held.pod_uid for held in snapshot.devices["a"].held}
    for one in snapshot.pods_by_node.get("a", {}).values():
        if one.uid not in confirmed and one.phase != "Running":
            yield one
