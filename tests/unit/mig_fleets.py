"""A fleet whose GPUs are cut as pods need it, played by hand: decide, let the agents cut, let kubelets start.

What is checked at every step is what must never happen: an instance that a pod holds goes away, or more pods
run on a node than it has instances for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
from tests.unit.fleets import GPU, node

from gpufleet.fleet.cuts import MigGPU, counted
from gpufleet.fleet.mig import GEOMETRIES, Placement, mig_resource
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Action, Bind, Cut, Nominate, Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide

GEOMETRY = "h100-80gb"


def device_of(pod: Pod) -> str:
    """The GPU resource that a pod asks for, one of it."""
    return next(name for name, _ in pod.shape.requests if name.startswith("nvidia.com/"))


class MigFleet:
    """`nodes` nodes of `gpus` idle H100, each in MIG mode or not."""

    def __init__(self, nodes: int, gpus: int, *, may_switch: bool = True, enabled: bool = False) -> None:
        self.may_switch = may_switch
        self.gpus = {
            f"n{number}": [
                MigGPU(f"GPU-{number}-{index}", index, GEOMETRY, enabled=enabled) for index in range(gpus)
            ]
            for number in range(nodes)
        }
        self.pods: dict[str, Pod] = {}
        self.held: dict[str, tuple[str, str, Placement | None]] = {}
        self.told: dict[str, list[str]] = {}

    def add(self, pods: Iterable[Pod]) -> None:
        self.pods |= {pod.key: pod for pod in pods}

    def end(self, *keys: str) -> None:
        for key in keys:
            del self.pods[key]
            self.held.pop(key, None)

    def snapshot(self) -> Snapshot:
        return snapshot_of(tuple(self._node(name) for name in self.gpus), tuple(self.pods.values()))

    def decide(self) -> tuple[Action, ...]:
        """One decision, assumed; GPUs are only asked to be cut."""
        actions = decide(self.snapshot(), Policy()).actions
        for action in actions:
            match action:
                case Bind():
                    bound = msgspec.structs.replace(self.pods[action.pod.key], node=action.node)
                    self.pods[action.pod.key] = bound
                case Nominate():
                    pod = self.pods[action.pod.key]
                    self.pods[pod.key] = msgspec.structs.replace(pod, nominated_node=action.node)
                case Cut():
                    self._ask(action)
                case Unschedulable():
                    self.told[action.pod.key] = [reason.code for reason in action.reasons]
                case _:
                    raise AssertionError(f"nobody should have to go: {action}")
        return actions

    def start(self) -> None:
        """Kubelets give devices to pods that are bound."""
        for pod in self.pods.values():
            if pod.node and pod.key not in self.held:
                self.held[pod.key] = self._device(pod)

    def cut(self) -> None:
        """Agents do what they are asked for, where nothing is in the way."""
        for name, gpus in self.gpus.items():
            busy = self._busy(name)
            for number, gpu in enumerate(gpus):
                layout = gpu.layout
                used = {place for uuid, place in busy if uuid == gpu.uuid}
                if lost := used - ({None} if layout is None else set(layout)):
                    raise AssertionError(f"{gpu.uuid} is asked to lose {lost} for {layout}")
                gpus[number] = msgspec.structs.replace(
                    gpu, enabled=layout is not None, instances=layout or (), wish=layout, off=layout is None
                )

    def settle(self, rounds: int = 30) -> int:
        """Decide, cut and start until nothing changes any more; the number of rounds."""
        for done in range(rounds):
            acted = [one for one in self.decide() if not isinstance(one, Unschedulable)]
            self.start()
            self.cut()
            if not acted:
                return done
        raise AssertionError("it never comes to rest")

    def running(self) -> Counter[str]:
        """How many pods hold a device of each resource."""
        return Counter(device_of(self.pods[key]) for key in self.held)

    def slices(self) -> int:
        """Compute slices of instances that pods hold."""
        profiles = GEOMETRIES[GEOMETRY].profiles
        return sum(profiles[place.profile].compute for *_, place in self.held.values() if place)

    def _ask(self, action: Cut) -> None:
        gpus = self.gpus[action.node]
        for number, gpu in enumerate(gpus):
            if gpu.uuid == action.gpu:
                gpus[number] = gpu.cut(action.layout)

    def _busy(self, name: str) -> set[tuple[str, Placement | None]]:
        return {(uuid, place) for node, uuid, place in self.held.values() if node == name}

    def _device(self, pod: Pod) -> tuple[str, str, Placement | None]:
        busy, resource = self._busy(pod.node), device_of(pod)
        for gpu in self.gpus[pod.node]:
            if resource == GPU and not gpu.enabled and (gpu.uuid, None) not in busy:
                return pod.node, gpu.uuid, None
            for place in gpu.instances:
                if mig_resource(place.profile) == resource and (gpu.uuid, place) not in busy:
                    return pod.node, gpu.uuid, place
        raise AssertionError(f"{pod.key} was bound to {pod.node}, which has nothing for it")

    def _node(self, name: str) -> Node:
        busy = self._busy(name)
        gpus = tuple(
            msgspec.structs.replace(
                gpu,
                busy=tuple(place for place in gpu.instances if (gpu.uuid, place) in busy),
                held=(gpu.uuid, None) in busy,
            )
            for gpu in self.gpus[name]
        )
        offered = Counter(mig_resource(place.profile) for gpu in gpus for place in gpu.instances)
        offered[GPU] += sum(not gpu.enabled for gpu in gpus)
        offered.subtract(counted(gpus, going=True))
        plain = node(name, cpu="1000", memory="8000Gi", pods=500, resources=dict(offered))
        return msgspec.structs.replace(plain, gpus=gpus, may_switch=self.may_switch)
