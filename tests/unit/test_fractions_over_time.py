"""Fractions over time: what the agent withdraws and what the ledger counts, while each hears of the other's
doings late.

The decision, the conversions, the agent of a simulated node and its kubelet are the real ones; the API server
is a dictionary. The kubelet hears of pods with whole GPUs and the agent of those with fractions, in order but
neither as fast as the other, and the agent's record is written whenever chance says so. A pod is gone for
the API server once its kubelet has ended it, and a container runs only after its devices are on record.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any

import msgspec
from tests.unit.simnode_pods import container
from tests.unit.simnode_pods import pod as manifest

from gpufleet.fleet.devices import WHOLE_RESOURCE
from gpufleet.fleet.fractions import FRACTION_RESOURCE
from gpufleet.fleet.plans import Bind
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.kube.conventions.picked_devices import annotated, picks_in
from gpufleet.kube.device_values import node_devices
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.objects import Node, Pod
from gpufleet.kube.values import node_value, pod_value
from gpufleet.local.fleetfile import parse_fleet
from gpufleet.local.simnodes.machines import machines
from gpufleet.local.simnodes.node import SimulatedNode
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.ledger import Ledger

GPUS, MOST_PODS = 4, 14
PARTS = ("0.1", "0.25", "0.33", "0.5", "0.7", "0.9")


def shares(pod: Pod) -> bool:
    """Whether a pod asks for a fraction."""
    return "gpu-fraction" in pod.metadata.annotations


class World:
    """One node; `strangers` says whether another scheduler binds pods to it as it likes."""

    def __init__(self, seed: int, *, strangers: bool) -> None:
        self.random = random.Random(seed)
        self.strangers = strangers
        text = f"groups: [{{name: n, count: 1, gpu: h100, gpusPerNode: {GPUS}}}]"
        self.agent = SimulatedNode(machines(parse_fleet(text, "f"), "f")[0])
        self.pods: dict[str, Pod] = {}
        self.unseen: dict[bool, deque[tuple[str, Pod]]] = {True: deque(), False: deque()}
        """What the agent (True) and the kubelet (False) have yet to hear."""
        self.refused: list[tuple[str, str]] = []
        self.conflicts = 0
        self.number = 0
        self.write()

    def write(self) -> None:
        """The agent writes its record; as the API server has it."""
        status = msgspec.json.decode(msgspec.json.encode(self.agent.status()))
        self.recorded = {one.pod_uid for one in self.agent.status().allocations}
        self.record = msgspec.convert({"metadata": {"name": "n-0"}, "status": status}, GPUNode)

    @property
    def snapshot(self) -> Snapshot:
        """What the scheduler knows."""
        machine = self.agent.machine
        body = {
            "metadata": {"name": "n-0", "labels": machine.labels},
            "status": {
                "allocatable": machine.capacity,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        node = node_value(msgspec.convert(body, Node), self.record)
        pods = tuple(pod_value(one) for one in self.pods.values())
        return snapshot_of((node,), pods, devices={"n-0": node_devices(self.record)})

    def create(self, *, stranger: bool) -> None:
        """A pod that asks for a part, the same part of two GPUs, or whole GPUs; a stranger's is bound."""
        self.number += 1
        annotations: dict[str, str] = {}
        gpus = self.random.choice((1, 1, 2))
        part = not stranger and self.random.random() < 0.7
        if part:
            annotations = {"gpu-fraction": self.random.choice(PARTS), "gpu-fraction-num-devices": str(gpus)}
        body = manifest(
            f"p{self.number}",
            annotations=annotations,
            containers=[container(gpus=0 if part else gpus)],
            schedulerName="nobody" if stranger else "gpufleet",
        )
        spec = msgspec.structs.replace(body.spec, node_name="n-0" if stranger else "")
        self._store(msgspec.structs.replace(body, spec=spec))

    def schedule(self) -> None:
        """Decide, and bind at once."""
        for action in decide(self.snapshot, Policy()).actions:
            if isinstance(action, Bind):
                known = self.pods[action.pod.uid]
                meta = msgspec.structs.replace(
                    known.metadata, annotations={**known.metadata.annotations, **annotated(action.picks)}
                )
                spec = msgspec.structs.replace(known.spec, node_name=action.node)
                self._store(msgspec.structs.replace(known, metadata=meta, spec=spec))

    def _store(self, pod: Pod) -> None:
        self.pods[pod.metadata.uid] = pod
        if pod.spec.node_name:
            self.unseen[shares(pod)].append(("bound", pod))

    def end(self) -> None:
        """A pod is gone, unless it is about to start."""
        if not self.pods:
            return
        uid = self.random.choice(sorted(self.pods))
        pod, queue = self.pods[uid], self.unseen[shares(self.pods[uid])]
        if ("bound", pod) in queue:
            queue.remove(("bound", pod))
        elif pod.spec.node_name:
            if uid not in self.recorded:
                return
            if shares(pod):
                queue.append(("gone", pod))
            else:
                self.agent.release(uid)
        del self.pods[uid]

    def hear(self) -> None:
        """The agent and the kubelet take in one thing; a pod that the kubelet refuses is over."""
        queues = [queue for queue in self.unseen.values() if queue]
        if not queues:
            return
        what, pod = self.random.choice(queues).popleft()
        if what == "gone":
            self.agent.release(pod.metadata.uid)
        elif (refusal := self.agent.admit(pod)) is not None:
            self.refused.append((pod.spec.scheduler_name, refusal.reason))
            self.pods.pop(pod.metadata.uid, None)

    def settle(self) -> None:
        """Everybody hears of everything."""
        while any(self.unseen.values()):
            self.hear()
        self.write()

    def step(self) -> None:
        actions: list[tuple[int, Any]] = [
            (4, lambda: self.create(stranger=False) if len(self.pods) < MOST_PODS else None),
            (1, lambda: self.create(stranger=True) if self.strangers else None),
            (4, self.schedule),
            (4, self.end),
            (8, self.hear),
            (4, self.write),
        ]
        weights = [weight for weight, _ in actions]
        self.random.choices([act for _, act in actions], weights)[0]()

    def check(self) -> None:
        """What holds at any moment."""
        parts: dict[str, Counter[str]] = {}
        for pod in self.pods.values():
            for pick in picks_in(pod.metadata.annotations):
                if pick.resource == FRACTION_RESOURCE:
                    milli = round(1000 * float(pod.metadata.annotations["gpu-fraction"]))
                    for uuid in pick.devices:
                        parts.setdefault(uuid, Counter())[pod.metadata.uid] += milli
        assert all(sum(one.values()) <= 1000 for one in parts.values())
        known = {one.uuid for one in self.agent.status().devices if one.fraction_milli}
        offered = self.agent.gpus.node.offer.resource(WHOLE_RESOURCE).devices
        assert {one.gpu for one in offered if not one.usable} == known
        held = {uuid for one in self.agent.holdings.all for uuid in one.devices}
        problems = self.agent.fraction_problems()
        assert {one.subject for one in problems if one.code == "FractionConflict"} == held & known
        if not self.strangers:
            assert not held & known
        self.conflicts += bool(held & known)

    def check_settled(self) -> None:
        """What holds once everybody has heard of everything: agent and ledger agree."""
        self.settle()
        account = Ledger.build(self.snapshot).accounts["n-0"]
        status = self.agent.status()
        carried = {one.uuid: one.fraction_milli for one in status.devices if one.fraction_milli}
        assert dict(account.carried.used) == carried
        assert not account.kept
        held = {uuid for one in self.agent.holdings.all for uuid in one.devices}
        if not held & carried.keys():
            (resource,) = status.resources
            assert account.free(WHOLE_RESOURCE) == resource.usable - len(held)


def play(seed: int, steps: int, *, strangers: bool) -> World:
    world = World(seed, strangers=strangers)
    for number in range(steps):
        world.step()
        world.check()
        if number % 50 == 49:
            world.check_settled()
    return world


def test_the_agent_withdraws_what_the_ledger_counts_and_no_pod_of_ours_is_refused() -> None:
    world = play(7, 10_000, strangers=False)
    assert world.refused == []
    assert world.conflicts == 0
    assert world.number > 1000


def test_a_stranger_that_comes_first_is_told_and_one_that_comes_later_is_refused() -> None:
    world = play(11, 3_000, strangers=True)
    assert world.conflicts
    assert any(scheduler == "nobody" for scheduler, _ in world.refused)
