"""Cutting GPUs for pods that fit nowhere as they are: who gets which, and that the room stays theirs.

Nodes whose pool is cut as pods need it can be asked for more instances of a profile, or for a whole GPU back.
A pod for which a GPU is cut is nominated to the node and its room is held, like room that evictions make: it
is bound once the agent has made the instance. What was asked for in an earlier decision is not asked for
again. Cutting comes before evicting: it hurts nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from gpufleet.fleet.cuts import MigGPU, Recut, counted, recut_for
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Cut
from gpufleet.fleet.pods import Pod, is_gpu_resource
from gpufleet.fleet.reasons import Reason
from gpufleet.scheduling.gangs import Unit
from gpufleet.scheduling.ledger import NodeAccount
from gpufleet.scheduling.placing import hold
from gpufleet.scheduling.trial import Trial


class Room(msgspec.Struct, frozen=True):
    """Where a pod will fit, and what is cut for it there; nothing when that was asked for already."""

    pod: Pod
    node: str
    cuts: tuple[Cut, ...] = ()

    @property
    def reason(self) -> Reason:
        """What the pod is told."""
        if not self.cuts:
            return Reason("WaitingForCut", f"a GPU of {self.node} is being cut for it", self.node)
        return Reason("WaitingForCut", "; ".join(cut.reasons[0].message for cut in self.cuts), self.node)


class Cutting:
    """The cuts of one decision, tried on its trial."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._nodes = [name for name in trial.nodes if trial.ledger.accounts[name].node.gpus]

    def rooms(self, unit: Unit, pods: Sequence[Pod]) -> list[Room] | None:
        """Room for as many of the pods as the unit needs, each of them held; None, and nothing is held,
        without.
        """
        if not self._nodes:
            return None
        mark = self._trial.mark()
        found = [room for pod in pods if (room := self._room(pod)) is not None]
        kept = unit.accepted([room.pod for room in found])
        if 0 < len(kept) < len(found):
            self._trial.rollback(mark)
            return self.rooms(unit, kept)
        if not kept or not any(room.cuts or self._waits(room) for room in found):
            self._trial.rollback(mark)
            return None
        return found

    def _waits(self, room: Room) -> bool:
        """Whether the pod's room is not there yet."""
        return any(
            self._trial.ledger.accounts[room.node].free(resource) < 0 for resource, _ in _devices(room.pod)
        )

    def _room(self, pod: Pod) -> Room | None:
        best = self._trial.search(pod).best()
        if best is not None:
            hold(pod, best, self._trial)
            return Room(pod, best)
        if not _devices(pod):
            return None
        first = [pod.nominated_node] if pod.nominated_node in self._nodes else []
        for name in first:
            if not self._missing(pod, name) and self._would_fit(pod, name):
                hold(pod, name, self._trial)
                return Room(pod, name)
        options = [option for name in self._nodes if (option := self._option(pod, name)) is not None]
        if not options:
            return None
        _, name, recuts = min(options, key=lambda option: option[:2])
        cuts = tuple(_cut(pod, name, recut) for recut in recuts)
        node = self._trial.ledger.accounts[name].node
        self._trial.recut(name, recut_node(node, [recut.gpu for recut in recuts]))
        hold(pod, name, self._trial)
        return Room(pod, name, cuts)

    def _option(self, pod: Pod, name: str) -> tuple[tuple[int, ...], str, list[Recut]] | None:
        """What it costs to cut a node for the pod."""
        account = self._trial.ledger.accounts[name]
        missing = self._missing(pod, name)
        if not missing or not self._would_fit(pod, name):
            return None
        gpus, used, recuts = list(account.node.gpus), dict(account.used), list[Recut]()
        for resource in missing:
            recut = recut_for(resource, gpus, used, may_switch=account.node.may_switch)
            if recut is None:
                return None
            gpus = [recut.gpu if gpu.uuid == recut.gpu.uuid else gpu for gpu in gpus]
            recuts.append(recut)
        return tuple(map(sum, zip(*(recut.cost for recut in recuts), strict=True))), name, recuts

    def _missing(self, pod: Pod, name: str) -> list[str]:
        """Resources of which the node has and was asked for too little, one for each device."""
        account = self._trial.ledger.accounts[name]
        coming = counted(account.node.gpus)
        return [
            resource
            for resource, amount in _devices(pod)
            for _ in range(amount - account.free(resource) - coming[resource])
        ]

    def _would_fit(self, pod: Pod, name: str) -> bool:
        """Whether the devices are all that the pod lacks on the node."""
        search, account = self._trial.search(pod), self._trial.ledger.accounts[name]
        enough = {resource: account.used.get(resource, 0) + amount for resource, amount in _devices(pod)}
        node = msgspec.structs.replace(account.node, allocatable={**account.node.allocatable, **enough})
        return search.allows(_on(node, account)) and not search.ruled_out(name)


def recut_node(node: Node, gpus: Iterable[MigGPU]) -> Node:
    """The node when these GPUs of it are asked to be cut: what goes is no longer there for anybody."""
    changed = {gpu.uuid: gpu for gpu in gpus}
    after = tuple(changed.get(gpu.uuid, gpu) for gpu in node.gpus)
    allocatable = dict(node.allocatable)
    more = counted(after, going=True)
    more.subtract(counted(node.gpus, going=True))
    for resource, amount in more.items():
        allocatable[resource] = allocatable.get(resource, 0) - amount
    return msgspec.structs.replace(node, gpus=after, allocatable=allocatable)


def _on(node: Node, account: NodeAccount) -> NodeAccount:
    return msgspec.structs.replace(account, node=node)


def _devices(pod: Pod) -> list[tuple[str, int]]:
    return [item for item in pod.shape.requests if item[1] > 0 and is_gpu_resource(item[0])]


def _cut(pod: Pod, node: str, recut: Recut) -> Cut:
    gpu, made = recut.gpu, recut.made
    what = f"{made.text} is cut on" if made else "MIG is switched off on"
    text = f"{what} GPU {gpu.index} of {node}"
    if recut.gone:
        text += f", in place of {', '.join(one.text for one in recut.gone)}, which nobody uses"
    reason = Reason("MigCut", text, node, evidence={"destroyed": len(recut.gone)})
    return Cut(
        pod,
        node,
        gpu.uuid,
        made.profile if made else "",
        made.start if made else 0,
        gpu.layout,
        (reason,),
    )
