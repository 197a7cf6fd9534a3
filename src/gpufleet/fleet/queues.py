"""Queues: who is entitled to how much of a fleet, as a tree.

A queue has, for each of GPUs, CPU and memory, a guarantee (what it gets before anybody borrows), a limit
(what it may hold at most), a lending limit (how much of an unused guarantee others may use) and a weight
(its part of what nobody is guaranteed). Pods wait in leaves; inner queues bound and order the queues below
them. All amounts are integers: milli-GPU, millicores, bytes; so `0.1 + 0.2` GPU fits a limit of `0.3`.

A device counts as one GPU, whether Kubernetes counts whole GPUs or replicas of them; a MIG instance counts by
its compute slices, seven to a GPU and rounded down, so that the instances of a GPU are never more than it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.pods import PodShape, is_gpu_resource
from gpufleet.fleet.quantities import comparable_amounts

QUEUE_LABEL = "gpufleet.dev/queue"
"""On a pod its queue; on a namespace the queue of its pods that name none."""

RESOURCES = ("gpu", "cpu", "memory")
"""What queues divide, in the order of `Amounts`."""

UNQUEUED = "(no queue)"
"""The queue of pods that name none: no guarantee, no limit, the weight of one queue."""

UNIT_WEIGHT = 1000
"""A weight of one: weights are integers in thousandths."""

_MIG_SLICES = 7
_MIG_PROFILE = re.compile(r"^nvidia\.com/mig-(\d+)g\.")
_DEFAULT_NAME = "default"


class Amounts(NamedTuple):
    """GPUs in thousandths, CPU in millicores, memory in bytes."""

    gpu: int = 0
    cpu: int = 0
    memory: int = 0

    def plus(self, other: Amounts) -> Amounts:
        """Both together."""
        return Amounts(self.gpu + other.gpu, self.cpu + other.cpu, self.memory + other.memory)


NOTHING = Amounts()


def milli_gpus(resource: str, count: int) -> int:
    """What `count` devices of a resource are in thousandths of a GPU; 0 for what is no GPU."""
    if not is_gpu_resource(resource):
        return 0
    match = _MIG_PROFILE.match(resource)
    return count * (int(match[1]) * MILLI // _MIG_SLICES if match else MILLI)


def amounts_of(resources: Mapping[str, int]) -> Amounts:
    """What queues count of what a node has (millicores, bytes, counts)."""
    return _counted(tuple(resources.items()))


def amounts_asked(shape: PodShape) -> Amounts:
    """What queues count of a pod. A fraction by memory counts as whole GPUs: which part of one it is depends
    on the node.
    """
    asked, part = _counted(shape.requests), shape.fraction
    return asked if part is None else asked.plus(Amounts(part.devices * (part.milli or MILLI)))


@lru_cache(maxsize=8192)
def _counted(resources: tuple[tuple[str, int], ...]) -> Amounts:
    known = dict(resources)
    gpu = sum(milli_gpus(resource, count) for resource, count in resources)
    return Amounts(gpu, known.get("cpu", 0), known.get("memory", 0))


class Quota(msgspec.Struct, frozen=True):
    """What a queue may have of one resource, in the unit of `Amounts`.

    `guarantee` None is all there is; `limit` and `lending_limit` None are no limit. `weight` is in
    thousandths; 0 borrows nothing. With `includes_children` the guarantees of the queues below count on top.
    """

    guarantee: int | None = 0
    limit: int | None = None
    lending_limit: int | None = None
    weight: int = UNIT_WEIGHT
    includes_children: bool = False


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """One queue. `rule` names the convention that said so, for people; `parent` is empty for a top one.

    `closed` says why it takes nobody in; empty while it does. `created` is in seconds since the epoch; the
    runtimes, in seconds, protect pods that started a short while ago from preemption within the queue and
    from reclaim by others.
    """

    name: str
    rule: str
    parent: str = ""
    gpu: Quota = Quota()
    cpu: Quota = Quota()
    memory: Quota = Quota()
    priority: int = 0
    created: float = 0.0
    closed: str = ""
    preempt_min_runtime: int = 0
    reclaim_min_runtime: int = 0

    @property
    def quotas(self) -> tuple[Quota, Quota, Quota]:
        """The quotas in the order of `RESOURCES`."""
        return self.gpu, self.cpu, self.memory


Guarantee = tuple[int | None, ...]


class QueueTree(msgspec.Struct, frozen=True):
    """Queues that fit together, and what is wrong with the others.

    `queues` has the sound ones, `problems` one text for each other name. `children` lists the names below a
    queue (the top ones under an empty name), `paths` a queue and all above it, itself first. `guarantees` are
    those that count, children included where a queue says so, in the order of `RESOURCES`.
    """

    queues: Mapping[str, Queue] = {}
    problems: Mapping[str, str] = {}
    children: Mapping[str, tuple[str, ...]] = {}
    paths: Mapping[str, tuple[str, ...]] = {}
    guarantees: Mapping[str, Guarantee] = {}

    @classmethod
    def of(cls, queues: Iterable[Queue]) -> QueueTree:
        """The tree of some queues, in any order. What is wrong with one leaves out it and all below it."""
        named: defaultdict[str, list[Queue]] = defaultdict(list)
        for queue in queues:
            named[queue.name].append(queue)
        if not named:
            return cls()
        named[UNQUEUED] = [Queue(name=UNQUEUED, rule="pods that name no queue")]
        problems = {name: _duplicates(name, same) for name, same in named.items() if len(same) > 1}
        single = {name: same[0] for name, same in named.items() if len(same) == 1}
        paths: dict[str, tuple[str, ...]] = {}
        for name in sorted(single):
            _climb(name, single, paths, problems)
        sound = {name: single[name] for name in sorted(paths)}
        children: defaultdict[str, list[str]] = defaultdict(list)
        for name, queue in sound.items():
            children[queue.parent].append(name)
        below = {name: tuple(names) for name, names in children.items()}
        told = dict(sorted(problems.items()))
        return cls(sound, told, below, paths, _guarantees(sound, below, paths))

    def __bool__(self) -> bool:
        return bool(self.queues or self.problems)

    def is_leaf(self, name: str) -> bool:
        """Whether pods may wait in a queue."""
        return name not in self.children

    def find(self, name: str) -> str:
        """The queue that a pod means by `name`; empty when there is none.

        No name is the queue of pods without one, and so is `default` where nobody made such a queue. Of a
        name `namespace/queue` the queue alone is enough.
        """
        if not name:
            return UNQUEUED
        last = name.rpartition("/")[2]
        for candidate in (name, last):
            if candidate in self.queues or candidate in self.problems:
                return candidate
        return UNQUEUED if last == _DEFAULT_NAME else ""


NO_QUEUES = QueueTree()


def _duplicates(name: str, same: Iterable[Queue]) -> str:
    rules = sorted(queue.rule for queue in same)
    return f"there are {len(rules)} queues named {name} ({', '.join(rules)}); names must differ"


def _climb(
    name: str, queues: Mapping[str, Queue], paths: dict[str, tuple[str, ...]], problems: dict[str, str]
) -> None:
    """Find the path of a queue, and of all on the way up, or what is wrong with them."""
    way: list[str] = []
    seen: set[str] = set()
    at = name
    while at and at not in paths and at not in problems and at in queues and at not in seen:
        way.append(at)
        seen.add(at)
        at = queues[at].parent
    if at in seen:
        loop = way[way.index(at) :]
        for index, member in enumerate(loop):
            turn = [*loop[index:], *loop[:index], member]
            problems[member] = f"queue {member} is above itself: {' below '.join(turn)}"
        way = way[: way.index(at)]
    elif at and at not in paths and at not in problems:
        child = way.pop()
        problems[child] = f"queue {child} names the parent {at}, which does not exist"
        at = child
    for member in reversed(way):
        parent = queues[member].parent
        if parent in problems:
            problems[member] = f"queue {member} is below {parent}, which cannot be used itself"
        else:
            paths[member] = (member, *paths.get(parent, ()))


def _guarantees(
    queues: Mapping[str, Queue], children: Mapping[str, tuple[str, ...]], paths: Mapping[str, tuple[str, ...]]
) -> dict[str, Guarantee]:
    found: dict[str, Guarantee] = {}
    for name in sorted(queues, key=lambda name: -len(paths[name])):
        stated = [quota.guarantee for quota in queues[name].quotas]
        below = [found[child] for child in children.get(name, ())]
        found[name] = tuple(
            _together(own, *(guarantee[index] for guarantee in below)) if quota.includes_children else own
            for index, (own, quota) in enumerate(zip(stated, queues[name].quotas, strict=True))
        )
    return found


def _together(*guarantees: int | None) -> int | None:
    known = [guarantee for guarantee in guarantees if guarantee is not None]
    return sum(known) if len(known) == len(guarantees) else None


def told_amounts(resource: str, *amounts: int) -> tuple[str, ...]:
    """Amounts of one of `RESOURCES` for people: GPUs as decimals, cores, bytes in Gi."""
    if resource == "gpu":
        return tuple(f"{amount / MILLI:.3f}".rstrip("0").rstrip(".") for amount in amounts)
    return comparable_amounts(resource, *amounts)
