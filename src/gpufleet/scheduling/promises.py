"""Promises: what the pods of a node will get that are bound and whose devices are not confirmed yet.

What was picked for a pod comes with its binding. A kubelet may give it to another pod that asks alike and
came first; then the agent leads the one to what was picked for the other (`devices.picks`), and the same is
concluded here. A pod for which nothing was picked, or whose devices somebody has got who leaves nothing in
exchange, will get nobody knows what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.fleet.devices import DevicePick, HeldDevices, NodeDevices
from gpufleet.fleet.pods import Pod

Picks = tuple[DevicePick, ...]

_Set = tuple[str, ...]
"""A resource and the devices of it that a container gets, in order."""


def held_by(devices: NodeDevices, living: Mapping[str, Pod]) -> tuple[HeldDevices, ...]:
    """What pods of the node hold, by uid; what others have held is free."""
    return tuple(one for one in devices.held if one.pod_uid in living)


def promises(devices: NodeDevices, living: Mapping[str, Pod]) -> list[tuple[Pod, Picks]]:
    """The pods of the node, by uid, whose devices are not confirmed, each with what it will get; nothing
    where nobody knows.
    """
    if not living:
        return []
    held = held_by(devices, living)
    confirmed = {one.pod_uid for one in held}
    waiting = [pod for uid, pod in sorted(living.items()) if uid not in confirmed]
    if not waiting:
        return []
    taken = {uuid for one in held for uuid in one.devices}
    left = _left_behind(held, living)
    return [(pod, _due(pod, devices, taken, left)) for pod in waiting]


def _left_behind(held: Iterable[HeldDevices], living: Mapping[str, Pod]) -> dict[_Set, tuple[str, ...]]:
    """What was picked for containers that hold other devices, by what they hold."""
    found: dict[_Set, tuple[str, ...]] = {}
    for one in held:
        for pick in living[one.pod_uid].picks:
            if (pick.container, pick.resource) == (one.container, one.resource):
                mine = _set(one.resource, one.devices)
                if mine != _set(pick.resource, pick.devices):
                    found[mine] = pick.devices
    return found


def _due(pod: Pod, devices: NodeDevices, taken: set[str], left: dict[_Set, tuple[str, ...]]) -> Picks:
    if not _complete(pod):
        return ()
    found = []
    for pick in pod.picks:
        pool = devices.pools.get(pick.resource)
        if pool is None:
            return ()
        due = pick.devices
        if pool.replicas == 1:
            # Of a shared device it cannot be told whose share somebody has got.
            while (key := _set(pick.resource, due)) in left:
                due = left.pop(key)
            if not taken.isdisjoint(due):
                return ()
        found.append(msgspec.structs.replace(pick, devices=due))
    return tuple(found)


def _set(resource: str, devices: Iterable[str]) -> _Set:
    return resource, *sorted(devices)


def _complete(pod: Pod) -> bool:
    """Whether there is a pick for each container that asks for devices, as many as it asks for."""
    asked = [(claim.container, claim.resource, claim.count) for claim in pod.device_claims]
    return asked == [(pick.container, pick.resource, len(pick.devices)) for pick in pod.picks]
