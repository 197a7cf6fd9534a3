"""Picks: which devices of its node each pod should get, chosen when the pod is bound.

Devices are free when no pod of the node holds them and none was promised them. What a pod holds is known once
its agent has confirmed it; until then what was picked for it counts. Where a pod waits for devices and nobody
knows which, nothing is picked of that resource: the node chooses by the same rules.

A kubelet asks its device plugin for a resource and a count, and does not say for which pod. So two pods that
ask alike and are bound at once can get each other's devices. Where that would make a difference (whole GPUs
that are linked otherwise, instances or shares of other GPUs) the later pod is kept back until the first one
is confirmed, and so are those that ask alike after it: it keeps its room and its turn. The pods of one gang
are kept apart from others and not from each other, for they are bound together and are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from gpufleet.fleet.device_choice import packed, shares
from gpufleet.fleet.devices import DevicePick, HeldDevices, NodeDevices, Pool
from gpufleet.fleet.links import best_set, table_of
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.placing import Placement

Picks = tuple[DevicePick, ...]
_UNKNOWN = "unknown"
"""Stands for the devices of a pod without picks."""


class DevicePicks:
    """The picks of one decision. What is picked, or kept for a pod that is kept back, is no longer free."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._nodes: dict[str, _Node] = {}

    def pick(self, placements: Sequence[Placement]) -> tuple[list[Picks], Reason | None]:
        """The picks of pods that are bound together, in their order; and why none of them may be bound yet,
        if so. No picks where it is not certain what is free.
        """
        found: list[Picks] = []
        reason: Reason | None = None
        if not self._snapshot.devices:
            return [()] * len(placements), None
        for placement in placements:
            pod = placement.pod
            devices = self._snapshot.devices.get(placement.node)
            if devices is None or not pod.device_claims:
                found.append(())
                continue
            node = self._nodes.get(placement.node)
            if node is None:
                pods = self._snapshot.pods_by_node.get(placement.node, {})
                node = self._nodes[placement.node] = _Node(devices, pods.values())
            picks = node.take(pod)
            rival = node.settle(pod, picks)
            if rival is not None and reason is None:
                text = f"{rival} is being given devices of {placement.node}; which ones is not confirmed yet"
                reason = Reason("WaitingForDevices", text, placement.node)
            found.append(picks)
        return found, reason


class _Settling(msgspec.Struct, frozen=True):
    """A pod that its kubelet has yet to give devices, and the gang that it is bound with."""

    pod: str
    gang: str


class _Node:
    """The devices of one node in a decision."""

    def __init__(self, devices: NodeDevices, pods: Iterable[Pod]) -> None:
        there = [pod for pod in pods if pod.device_claims]
        living = {pod.uid for pod in there}
        self._devices = devices
        self._held = tuple(one for one in devices.held if one.pod_uid in living)
        self._used = {uuid for one in self._held for uuid in one.devices}
        self._stocks: dict[str, _Stock] = {}
        self._settling: dict[tuple[str, int], dict[Hashable, list[_Settling]]] = {}
        confirmed = {one.pod_uid for one in self._held}
        for pod in there:
            if pod.uid not in confirmed:
                picks = pod.picks if _complete(pod) else ()
                self._promise(pod, picks)
                if pod.phase != "Running":
                    self.settle(pod, picks)

    def take(self, pod: Pod) -> Picks:
        """Pick for each container of a pod, and count that as used; nothing where that is not certain.

        What an init container had serves the later containers, as a kubelet has it.
        """
        picks: list[DevicePick] = []
        reusable: dict[str, list[str]] = {}
        for claim in pod.device_claims:
            again = reusable.get(claim.resource, [])
            chosen = again[: claim.count]
            new = self._stock(claim.resource).take(claim.count - len(chosen), chosen)
            if new is None:
                self._doubt(pod)
                return ()
            if claim.reusable:
                reusable[claim.resource] = again + new
            elif again:
                reusable[claim.resource] = again[claim.count :]
            picks.append(DevicePick(claim.container, claim.resource, (*chosen, *new)))
        return tuple(picks)

    def settle(self, pod: Pod, picks: Picks) -> str | None:
        """Count a pod as one whose devices are not confirmed; another such pod whose devices it could get, to
        anybody's harm, or None.
        """
        rivals: set[str] = set()
        for number, claim in enumerate(pod.device_claims):
            stock = self._stock(claim.resource)
            if not stock.matters(claim.count):
                continue
            mark = stock.kind(picks[number].devices) if picks else _UNKNOWN
            asking = self._settling.setdefault((claim.resource, claim.count), {})
            for other, pods in asking.items():
                if other != mark or mark == _UNKNOWN:
                    rivals |= {one.pod for one in pods if not one.gang or one.gang != pod.gang_key}
            asking.setdefault(mark, []).append(_Settling(pod.key, pod.gang_key))
        return min(rivals - {pod.key}, default=None)

    def _promise(self, pod: Pod, picks: Picks) -> None:
        """Count what was picked for a pod in an earlier decision."""
        if not picks:
            self._doubt(pod)
        reusable: dict[str, Counter[str]] = {}
        for claim, pick in zip(pod.device_claims, picks, strict=False):
            again = reusable.get(claim.resource, Counter())
            new = Counter(pick.devices) - again
            self._stock(claim.resource).remove(new)
            reusable[claim.resource] = again + new if claim.reusable else again - Counter(pick.devices)

    def _doubt(self, pod: Pod) -> None:
        """From here on nobody knows which devices of the pod's resources are free."""
        for claim in pod.device_claims:
            self._stock(claim.resource).certain = False

    def _stock(self, resource: str) -> _Stock:
        stock = self._stocks.get(resource)
        if stock is None:
            pool = self._devices.pools.get(resource)
            make = _Whole if pool is not None and pool.whole else _Parts
            stock = self._stocks[resource] = make(self._devices, pool or Pool(()), self._held, self._used)
            stock.certain = pool is not None
        return stock


class _Stock(Protocol):
    """What is free of one resource of a node. `certain` says whether that is known."""

    certain: bool

    def take(self, size: int, chosen: Sequence[str]) -> list[str] | None:
        """The best `size` devices beside those that a container has already; None when it is not certain
        that there are so many.
        """

    def remove(self, devices: Mapping[str, int]) -> None:
        """So many shares of these devices (of an unshared one: 1) are somebody's."""

    def matters(self, count: int) -> bool:
        """Whether it can make a difference which of the devices a container gets that asks for so many."""

    def kind(self, devices: Sequence[str]) -> Hashable:
        """Devices of equal kinds are as good as each other."""


class _Whole:
    """Whole GPUs: the best linked set of those that are free."""

    def __init__(self, devices: NodeDevices, pool: Pool, held: Sequence[HeldDevices], used: set[str]) -> None:
        self.certain = True
        self._uuids = tuple(gpu.whole.uuid for gpu in devices.gpus)
        self._places = {uuid: place for place, uuid in enumerate(self._uuids)}
        self._table = table_of(devices.links, len(self._uuids))
        self._matters = 0 if self._table.alike else len(pool.parts)
        self._free = self._mask(pool.free(held))
        self._used = used

    def take(self, size: int, chosen: Sequence[str]) -> list[str] | None:
        if not self.certain or self._free.bit_count() < size:
            return None
        include = self._mask(chosen)
        found = best_set(self._table, self._free, include, size + len(chosen)) & ~include
        self._free &= ~found
        uuids = [self._uuids[place] for place in self._table.places(found)]
        self._used.update(uuids)
        return uuids

    def remove(self, devices: Mapping[str, int]) -> None:
        self._free &= ~self._mask(devices)
        self._used.update(devices)

    def matters(self, count: int) -> bool:
        return 1 < count < self._matters

    def kind(self, devices: Sequence[str]) -> Hashable:
        return self._table.score([self._places[uuid] for uuid in devices if uuid in self._places])

    def _mask(self, uuids: Iterable[str]) -> int:
        return self._table.mask(self._places[uuid] for uuid in uuids if uuid in self._places)


class _Parts:
    """MIG instances, and shares of devices."""

    def __init__(self, devices: NodeDevices, pool: Pool, held: Sequence[HeldDevices], used: set[str]) -> None:
        self.certain = True
        self._pool = pool
        self._free = pool.free(held)
        self._gpus = {part.uuid: part.gpu for part in pool.parts}
        self._total = Counter(self._gpus.values())
        self._owners = {part.uuid: part.gpu for gpu in devices.gpus for _, part in gpu.instances}
        self._used = used

    def take(self, size: int, chosen: Sequence[str]) -> list[str] | None:
        if not self.certain or sum(self._free.values()) < size:
            return None
        found = self._best(size, chosen)
        self.remove(Counter(found))
        return found

    def _best(self, size: int, chosen: Sequence[str]) -> list[str]:
        if self._pool.replicas > 1:
            taken = {uuid: self._pool.replicas - amount for uuid, amount in self._free.items()}
            return shares(self._free, taken, Counter(chosen), size, self._pool.policy)
        busy = {self._owners.get(uuid, uuid) for uuid in self._used}
        return packed([(uuid, self._gpus[uuid]) for uuid in self._free], self._total, busy, size)

    def remove(self, devices: Mapping[str, int]) -> None:
        self._used.update(devices)
        for uuid, amount in devices.items():
            left = self._free.pop(uuid, 0) - amount
            if left > 0:
                self._free[uuid] = left

    def matters(self, count: int) -> bool:
        return len(self._total) > 1

    def kind(self, devices: Sequence[str]) -> Hashable:
        return tuple(sorted(self._gpus.get(uuid, uuid) for uuid in devices))


def _complete(pod: Pod) -> bool:
    """Whether there is a pick for each container that asks for devices, as many as it asks for."""
    asked = [(claim.container, claim.resource, claim.count) for claim in pod.device_claims]
    return asked == [(pick.container, pick.resource, len(pick.devices)) for pick in pod.picks]
