"""A cluster of virtual time: which pods wait and where the others run, and one decision of the scheduler.

It keeps what the cache of a live cluster keeps, in the same way: the pods of a node are a mapping that is
replaced when a pod comes or goes there, so the ledger of the last decision serves the next one.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from gpufleet.fleet.mixes import MixCounter
from gpufleet.fleet.plans import Bind, Evict, Nominate
from gpufleet.fleet.pods import GANG_LABELS_RULE, GangRef, Pod
from gpufleet.fleet.queues import QueueTree
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.ledger import Ledger
from gpufleet.simulator.books import Books, MisplacedError
from gpufleet.simulator.members import claims_of, devices_of, node_of, placement_of, shape_of
from gpufleet.simulator.traces import Job, Load

_NAMESPACE = "load"


class Decided(NamedTuple):
    """Jobs, by their number in the load, of which all pods were bound, and of which pods are evicted."""

    started: tuple[int, ...]
    evicted: tuple[int, ...]


class Cluster:
    """The nodes of a load with the jobs that are there now, by their number in the load."""

    def __init__(self, load: Load) -> None:
        self._jobs = load.jobs
        self._places = {node.name: number for number, node in enumerate(load.nodes)}
        self._books = Books(load.nodes)
        self._nodes = {node.name: node_of(node.name, node) for node in load.nodes}
        self._devices = {node.name: devices_of(node.name, node) for node in load.nodes}
        self._queues = QueueTree.of(load.queues)
        self._by_node: dict[str, dict[str, Pod]] = {}
        self._unbound: dict[str, Pod] = {}
        self._node_of: dict[str, str] = {}
        self._number_of: dict[str, int] = {}
        self._mix = MixCounter()
        self._policy = Policy()
        self._ledger: Ledger | None = None

    @property
    def waiting(self) -> bool:
        """Whether any pod waits."""
        return bool(self._unbound)

    def add(self, number: int, now: int) -> None:
        """A job comes, and its pods are made now."""
        job = self._jobs[number]
        for pod in _pods(job, now):
            self._unbound[pod.key] = pod
            self._number_of[pod.key] = number
            self._mix.add(pod.shape)

    def stop(self, number: int) -> None:
        """All pods of a job that runs are gone."""
        for pod in _keys(self._jobs[number]):
            shape = self._unplace(pod).shape
            self._mix.add(shape, -1)
            del self._number_of[pod]

    def decide(self) -> Decided:
        """Let the scheduler decide, and do what it says. Raises MisplacedError for what cannot be, and for a
        job of which only some pods are bound.
        """
        snapshot = Snapshot(
            nodes=self._nodes,
            devices=self._devices,
            pods_by_node=dict(self._by_node),
            unbound=dict(self._unbound),
            mix=self._mix.mix(),
            queues=self._queues,
        )
        self._ledger = Ledger.build(snapshot, self._ledger)
        started: dict[int, int] = {}
        evicted: dict[int, None] = {}
        for action in decide(snapshot, self._policy, self._ledger).actions:
            if isinstance(action, Bind):
                number = self._bind(action)
                started[number] = started.get(number, 0) + 1
            elif isinstance(action, Evict):
                evicted[self._number_of[action.pod.key]] = None
            elif isinstance(action, Nominate):
                self._nominate(action)
        for number, bound in started.items():
            if bound != self._jobs[number].pods:
                raise MisplacedError(
                    f"{bound} pods of {self._jobs[number].name} were bound without the others"
                )
        return Decided(tuple(started), tuple(evicted))

    def _bind(self, bind: Bind) -> int:
        pod = self._unbound.pop(bind.pod.key)
        number = self._number_of[pod.key]
        self._books.start(pod.key, self._jobs[number].request, placement_of(bind, self._places[bind.node]))
        bound = msgspec.structs.replace(
            pod, node=bind.node, phase="Running", picks=bind.picks, nominated_node=""
        )
        self._by_node[bind.node] = {**self._by_node.get(bind.node, {}), pod.key: bound}
        self._node_of[pod.key] = bind.node
        return number

    def _unplace(self, key: str) -> Pod:
        """A pod that runs is gone."""
        self._books.end(key)
        node = self._node_of.pop(key)
        pods = dict(self._by_node[node])
        pod = pods.pop(key)
        self._by_node[node] = pods
        return pod

    def _nominate(self, action: Nominate) -> None:
        pod = self._unbound[action.pod.key]
        self._unbound[pod.key] = msgspec.structs.replace(pod, nominated_node=action.node)


def _pods(job: Job, now: int) -> list[Pod]:
    gang = GangRef(job.name, job.pods, GANG_LABELS_RULE) if job.pods > 1 else None
    shape, claims = shape_of(job.request), claims_of(job.request)
    return [
        Pod(
            _NAMESPACE,
            key.partition("/")[2],
            key,
            shape,
            priority=job.priority,
            created=float(now),
            gang=gang,
            device_claims=claims,
            queue=job.queue,
        )
        for key in _keys(job)
    ]


def _keys(job: Job) -> list[str]:
    return [f"{_NAMESPACE}/{job.name}-{number}" for number in range(job.pods)]
