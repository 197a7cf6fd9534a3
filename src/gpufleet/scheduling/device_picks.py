"""Picks: which devices of its node each pod should get, chosen when the pod is bound.

Devices are free when no pod of the node holds them and none was promised them. What a pod holds is known once
its agent has confirmed it; until then what it was promised counts (`promises`). Where nobody knows what a pod
will get, nothing is picked of that resource: the node chooses by the same rules.

A kubelet asks its device plugin for a resource and a count, and does not say for which pod. So two pods that
ask alike and are bound at once can get each other's devices. Where that would make a difference (whole GPUs
that are linked otherwise, instances or shares of other GPUs) the later pod is kept back until the first one
is confirmed, and so are those that ask alike after it: it keeps its room and its turn. The pods of one gang
are kept apart from others and not from each other, for they are bound together and are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import msgspec

from gpufleet.fleet.devices import WHOLE_RESOURCE, DevicePick, NodeDevices
from gpufleet.fleet.fractions import FRACTION_RESOURCE, Fraction
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.placing import Placement
from gpufleet.scheduling.promises import Picks, held_by, promises
from gpufleet.scheduling.stocks import Stock, stock_of

_UNKNOWN = "unknown"
"""Stands for the devices of a pod without picks."""


class DevicePicks:
    """The picks of one decision. What is picked, or kept for a pod that is kept back, is no longer free."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._snapshot = ledger.snapshot
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
            fraction = pod.shape.fraction
            if devices is None or not (pod.device_claims or fraction):
                found.append(())
                continue
            node = self._nodes.get(placement.node)
            if node is None:
                pods = self._snapshot.pods_by_node.get(placement.node, {})
                node = self._nodes[placement.node] = _Node(devices, pods.values())
            if fraction is not None:
                parts = self._ledger.accounts[placement.node].carried.by_pod[pod.key]
                found.append(node.take_parts(fraction, parts))
                if not found[-1] and reason is None:
                    text = f"it is not known yet which GPUs of {placement.node} are free"
                    reason = Reason("WaitingForDevices", text, placement.node)
                continue
            picks = node.take(pod)
            rival = node.settle(pod, picks)
            if rival is not None and reason is None:
                text = (
                    f"devices of {placement.node} are being given to {rival}, and it is not known yet which"
                )
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
        pods = tuple(pods)
        living = {pod.uid: pod for pod in pods if pod.device_claims}
        self._devices = devices
        self._held = held_by(devices, living)
        self._used = {uuid for one in self._held for uuid in one.devices}
        self._stocks: dict[str, Stock] = {}
        self._settling: dict[tuple[str, int], dict[Hashable, list[_Settling]]] = {}
        self._opened: dict[str, str] = {}
        for pod in pods:
            for pick in pod.picks if pod.shape.fraction else ():
                self._stock(WHOLE_RESOURCE).remove(dict.fromkeys(pick.devices, 1))
        for pod, picks in promises(devices, living):
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

    def take_parts(self, fraction: Fraction, parts: Sequence[str]) -> Picks:
        """Pick the GPUs of which a pod has parts: those of `parts` that carry fractions already, and whole
        ones for names that stand for a new one. Nothing where it is not certain what is free.
        """
        new = [part for part in parts if "#" in part and part not in self._opened]
        chosen = self._stock(WHOLE_RESOURCE).take(len(new), ()) if new else []
        if chosen is None:
            return ()
        self._opened.update(zip(new, chosen, strict=True))
        uuids = tuple(self._opened.get(part, part) for part in parts)
        return (DevicePick(fraction.container, FRACTION_RESOURCE, uuids),)

    def settle(self, pod: Pod, picks: Picks) -> str | None:
        """Count a pod as one whose devices are not confirmed; another such pod whose devices it could get, to
        anybody's harm, or None.
        """
        rivals: set[str] | None = None
        for number, claim in enumerate(pod.device_claims):
            stock = self._stock(claim.resource)
            if not stock.matters(claim.count):
                continue
            mark = stock.kind(picks[number].devices) if picks else _UNKNOWN
            asking = self._settling.setdefault((claim.resource, claim.count), {})
            rivals = rivals or set()
            for other, pods in asking.items():
                if other != mark or mark == _UNKNOWN:
                    rivals |= {one.pod for one in pods if not one.gang or one.gang != pod.gang_key}
            asking.setdefault(mark, []).append(_Settling(pod.key, pod.gang_key))
        return min(rivals - {pod.key}, default=None) if rivals else None

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

    def _stock(self, resource: str) -> Stock:
        stock = self._stocks.get(resource)
        if stock is None:
            stock = self._stocks[resource] = stock_of(resource, self._devices, self._held, self._used)
        return stock
