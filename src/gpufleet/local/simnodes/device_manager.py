"""The device manager of a simulated kubelet: which device ids each container of a node holds, as a value.

It follows the kubelet's: a pod gets all that its containers claim or nothing, devices of an init container
serve the pod's later containers, and what the device plugin prefers is taken where it is free.
Source: pkg/kubelet/cm/devicemanager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from gpufleet.devices.resources import Offer
from gpufleet.fleet.devices import DeviceClaim, device_of
from gpufleet.kube.gpunode import GPUAllocation

Prefer = Callable[[str, Sequence[str], Sequence[str], int], Sequence[str]]
"""The plugin's advice: resource, available ids, ids that must be among them, how many."""


class Holder(msgspec.Struct, frozen=True):
    """A pod that may hold devices."""

    namespace: str
    pod: str
    uid: str


class Holding(msgspec.Struct, frozen=True):
    """The device ids that a container holds for one resource."""

    holder: Holder
    container: str
    resource: str
    ids: tuple[str, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """The UUIDs behind the ids: GPUs or MIG instances, each once."""
        return tuple(dict.fromkeys(device_of(one) for one in self.ids))


class Shortage(msgspec.Struct, frozen=True):
    """Why a claim got nothing: `available` is None when the node has no such resource at all."""

    resource: str
    wanted: int
    available: int | None


class Holdings(msgspec.Struct, frozen=True):
    """Who holds what on one node. No device id is held by two pods."""

    all: tuple[Holding, ...] = ()

    def of(self, uid: str) -> tuple[Holding, ...]:
        """What the pod with this uid holds."""
        return tuple(holding for holding in self.all if holding.holder.uid == uid)

    def allocate(
        self, holder: Holder, claims: Sequence[DeviceClaim], offer: Offer, prefer: Prefer
    ) -> Holdings | Shortage:
        """The holdings after all claims of a pod, or what there is too little of."""
        taken = {one for holding in self.all for one in holding.ids}
        offered = {resource.name: resource.devices for resource in offer.resources}
        reusable: dict[str, list[str]] = {}
        added: list[Holding] = []
        for claim in claims:
            if claim.resource not in offered:
                return Shortage(claim.resource, claim.count, None)
            pool = reusable.setdefault(claim.resource, [])
            chosen = pool[: claim.count]
            free = [one.id for one in offered[claim.resource] if one.usable and one.id not in taken]
            missing = claim.count - len(chosen)
            if missing > len(free):
                return Shortage(claim.resource, claim.count, len(free) + len(chosen))
            if missing:
                advised = prefer(claim.resource, [*chosen, *free], chosen, claim.count)
                advice = [one for one in advised if one in free]
                chosen += list(dict.fromkeys([*advice, *free]))[:missing]
            taken.update(chosen)
            if claim.reusable:
                reusable[claim.resource] = pool + [one for one in chosen if one not in pool]
            else:
                reusable[claim.resource] = [one for one in pool if one not in chosen]
            added.append(Holding(holder, claim.container, claim.resource, tuple(chosen)))
        return Holdings(self.all + tuple(added))

    def restore(self, recorded: Iterable[GPUAllocation], offer: Offer) -> Holdings:
        """With allocations that were recorded. Ids that do not exist any more, or that another pod holds
        already, are left out.
        """
        known = {one.name: {device.id for device in one.devices} for one in offer.resources}
        owners = {one: holding.holder.uid for holding in self.all for one in holding.ids}
        found = list(self.all)
        for one in recorded:
            exist = known.get(one.resource, set())
            kept = tuple(
                device
                for device in one.device_ids
                if device in exist and owners.setdefault(device, one.pod_uid) == one.pod_uid
            )
            if kept:
                holder = Holder(one.namespace, one.pod, one.pod_uid)
                found.append(Holding(holder, one.container, one.resource, kept))
        return Holdings(tuple(found))

    def release(self, uid: str) -> Holdings:
        """Without what the pod with this uid holds; the same value when it holds nothing."""
        kept = tuple(holding for holding in self.all if holding.holder.uid != uid)
        return self if len(kept) == len(self.all) else Holdings(kept)

    def allocations(self) -> tuple[GPUAllocation, ...]:
        """The holdings as a `GPUNode` records them."""
        return tuple(
            GPUAllocation(
                namespace=one.holder.namespace,
                pod=one.holder.pod,
                pod_uid=one.holder.uid,
                container=one.container,
                resource=one.resource,
                devices=one.devices,
                ids=() if one.ids == one.devices else one.ids,
            )
            for one in self.all
        )
