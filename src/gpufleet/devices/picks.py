"""Picks: the devices that the scheduler has chosen for pods that the kubelet has yet to admit.

The kubelet asks for a resource and a count, and does not say for which pod. So the pods that were bound to
the node wait in the order of their binding, and a question is answered with the first pick that fits it:
same resource, same count, everything still free. What other pods were promised is left alone as long as
there is enough else. The ids that the kubelet allocates then use up the pick that they are. Who got them is
read from the kubelet later: where it was another pod, the two exchange their picks, so that one pod that
comes out of turn does not shift all that follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from gpufleet.fleet.devices import device_of
from gpufleet.fleet.fractions import FRACTION_RESOURCE
from gpufleet.kube.conventions.picked_devices import picks_in
from gpufleet.kube.objects import Pod


class Pick(msgspec.Struct, frozen=True):
    """What one container of a pod should get: `devices` are UUIDs of GPUs or MIG instances, or ids."""

    uid: str
    container: str
    resource: str
    devices: tuple[str, ...]

    @property
    def owner(self) -> tuple[str, str]:
        """The pod's uid and its container."""
        return self.uid, self.container


class Picks(msgspec.Struct, frozen=True):
    """The picks of pods whose devices are not confirmed yet, in the order in which they were bound: those
    that `wait`, and those `taken` whose devices the kubelet has allocated to whichever pod.
    """

    waiting: tuple[Pick, ...] = ()
    taken: tuple[Pick, ...] = ()

    def bound(self, picks: Iterable[Pick]) -> Picks:
        """With the picks of a pod that was bound just now."""
        return Picks(self.waiting + tuple(picks), self.taken)

    def gone(self, uid: str) -> Picks:
        """Without those of a pod that was refused or deleted."""
        waiting = tuple(pick for pick in self.waiting if pick.uid != uid)
        return Picks(waiting, tuple(pick for pick in self.taken if pick.uid != uid))

    def used(self, resource: str, ids: Sequence[str]) -> Picks:
        """After the kubelet has allocated these ids: the first pick that they are is taken."""
        for place, pick in enumerate(self.waiting):
            if pick.resource == resource and not swapped(pick, ids):
                rest = self.waiting[:place] + self.waiting[place + 1 :]
                return Picks(rest, (*self.taken, pick))
        return self

    def confirmed(self, uid: str, container: str, resource: str, ids: Sequence[str]) -> Picks:
        """After the kubelet has said which ids a container holds: without its pick, which another pod
        inherits when these ids were that pod's.
        """
        own = (uid, container)
        same = [pick for pick in self.taken if pick.resource == resource and not swapped(pick, ids)]
        used = next((pick for pick in same if pick.owner == own), same[0] if same else None)

        def left(picks: tuple[Pick, ...]) -> Iterator[Pick]:
            for pick in picks:
                if pick is used:
                    continue
                if pick.owner != own or pick.resource != resource:
                    yield pick
                elif used is not None:
                    yield msgspec.structs.replace(pick, uid=used.uid, container=used.container)

        return Picks(tuple(left(self.waiting)), tuple(left(self.taken)))

    def answer(
        self, resource: str, available: Sequence[str], must: Sequence[str], size: int
    ) -> tuple[str, ...] | None:
        """The ids of the first pick that fits a question of the kubelet; None when none does."""
        for pick in self.waiting:
            if pick.resource == resource and len(pick.devices) == size:
                ids = _ids(pick, available, must)
                if ids is not None:
                    return ids
        return None

    def spare(self, resource: str, available: Sequence[str], size: int) -> tuple[str, ...]:
        """The available ids that no pick names, or all of them when these are fewer than `size`."""
        promised = [device for pick in self.waiting if pick.resource == resource for device in pick.devices]
        left = list(available)
        for device in promised:
            if (found := _first(device, left)) is not None:
                left.remove(found)
        return tuple(left if len(left) >= size else available)


def picks_of(pod: Pod) -> tuple[Pick, ...]:
    """The picks that came with a pod's binding; none where the annotation is absent or says nothing.

    Fractions are left out: no kubelet asks for them.
    """
    found = picks_in(pod.metadata.annotations)
    return tuple(
        Pick(pod.metadata.uid, one.container, one.resource, one.devices)
        for one in found
        if one.resource != FRACTION_RESOURCE
    )


def swapped(pick: Pick, ids: Sequence[str]) -> bool:
    """Whether a container got other devices than its pick (other replicas of them are the same)."""
    wanted = sorted(device_of(one) for one in pick.devices)
    return wanted != sorted(device_of(one) for one in ids)


def _ids(pick: Pick, available: Sequence[str], must: Sequence[str]) -> tuple[str, ...] | None:
    """The ids that stand for a pick, `must` among them; None when one of its devices is not free."""
    left = [*must, *(one for one in available if one not in must)]
    ids = []
    for device in pick.devices:
        found = _first(device, left)
        if found is None:
            return None
        left.remove(found)
        ids.append(found)
    return tuple(ids) if set(must) <= set(ids) else None


def _first(device: str, ids: Iterable[str]) -> str | None:
    """The id itself, or the first replica of a UUID."""
    ids = tuple(ids)
    return device if device in ids else next((one for one in ids if device_of(one) == device), None)
