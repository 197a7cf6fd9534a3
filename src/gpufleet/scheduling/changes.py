"""What would make a pending unit fit: single changes, each made on a copy of the snapshot and seen to work.

Candidates are the smallest edits that people make: drop one selector or affinity, tolerate one taint, ask for
less, uncordon a node, raise the priority, end one workload, add nodes like those there are. What one member
of a gang suggests is offered to all of them; an edit changes the members that it can change, and names them
unless it is every one. A candidate is a changed snapshot. It is tried on the fleet as the decision leaves it,
and what works there is decided anew as a whole, because pods ahead in the queue may take what the change
frees. Ordered by how little a change asks of others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping
from functools import partial
from itertools import islice

import msgspec

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind, BindVolume, Evict, Nominate, Plan, SelectNode, Unschedulable
from gpufleet.fleet.pods import Pod, PodShape, is_gpu_resource
from gpufleet.fleet.quantities import comparable_amounts, is_bytes
from gpufleet.fleet.selectors import Taint, Toleration, untolerated
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.scheduling.filters import pod_problem
from gpufleet.scheduling.gangs import Unit, units
from gpufleet.scheduling.holders import in_the_way
from gpufleet.scheduling.ledger import NOTHING_KEPT, Ledger, NodeAccount, account_of
from gpufleet.scheduling.node_copies import PASSING, at_its_best, copies, is_lasting
from gpufleet.scheduling.placing import place
from gpufleet.scheduling.trial import Trial

LIMIT = 5
"""How many changes are offered; more would not be read."""

ALIKE = 3
"""How many of them are of one kind."""

SHAPES = 8
"""How many different members of a gang are asked for edits."""

NAMED = 3
"""How many members are named."""

TRIES = 50
"""How many workloads, cordoned nodes and priorities are tried."""


class Change(msgspec.Struct, frozen=True):
    """One change that makes the unit fit. `kind` is a stable word, `message` says what to do."""

    kind: str
    message: str


_Candidate = tuple[Change, Snapshot]
_Edit = Callable[[PodShape], PodShape]
_Workload = tuple[str, str]
"""A namespace and `Pod.workload`."""


def helpful_changes(
    snapshot: Snapshot, policy: Policy, after: Ledger, unit: Unit, pod: Pod, starting: Container[str] = ()
) -> tuple[Change, ...]:
    """Changes that each, alone, let the unit be placed; at most LIMIT.

    `after` is the ledger as the decision leaves it, `starting` are the pods that it binds: they are left
    alone, as they run by the time that somebody reads this. Where the cause is the pod's own (a claim that
    does not exist), no change of nodes or room helps.
    """
    if not unit.enough([member for member in unit.pods if pod_problem(member, after) is None]):
        return ()
    ahead = _up_to(snapshot, policy, unit)
    found: list[Change] = []
    for change, changed in _Asking(snapshot, ahead, policy, after, unit, pod, starting).candidates():
        alike = sum(other.kind == change.kind for other in found)
        if alike < ALIKE and served(decide(changed, policy), unit):
            found.append(change)
            if len(found) == LIMIT:
                break
    return tuple(found)


class _Asking:
    """A unit that asks what would help. `ahead` is the snapshot without those who wait behind it."""

    def __init__(
        self,
        snapshot: Snapshot,
        ahead: Snapshot,
        policy: Policy,
        after: Ledger,
        unit: Unit,
        pod: Pod,
        starting: Container[str],
    ) -> None:
        self._everybody = snapshot
        self._snapshot = ahead
        self._starting = starting
        self._policy = policy
        self._after = after
        self._unit = unit
        self._pod = pod
        self._accounts = dict(sorted(after.accounts.items()))
        shapes = dict.fromkeys((pod.shape, *(member.shape for member in unit.pods)))
        self._shapes = tuple(islice(shapes, SHAPES))

    def candidates(self) -> Iterator[_Candidate]:
        """Changes that help on the fleet as the decision leaves it, and the snapshot with each of them."""
        edits = {change: edit for shape in self._shapes for change, edit in self._edits(shape)}
        for change, edit in edits.items():
            told, changed = self._edited(change, edit)
            if self._fits(changed):
                yield told, changed
        yield from self._asking_less()
        yield from self._uncordoned()
        yield from self._raised()
        yield from self._without_others()
        yield from self._more_nodes()

    def _edits(self, shape: PodShape) -> Iterator[tuple[Change, _Edit]]:
        for key, value in shape.node_selector:
            change = Change("drop-node-selector", f"remove {key}={value} from the nodeSelector")
            yield change, partial(_without_selector, item=(key, value))
        for field, words in (
            ("node_affinity", "the required node affinity"),
            ("affinity", "the required pod affinity"),
            ("anti_affinity", "the required pod anti-affinity"),
            ("spread", "the topology spread constraints"),
            ("host_ports", "the host ports"),
        ):
            if getattr(shape, field):
                yield (
                    Change(f"drop-{field.replace('_', '-')}", f"remove {words}"),
                    partial(_without, field=field),
                )
        nodes = (account.node for account in self._accounts.values())
        taints = {
            taint for node in nodes if (taint := untolerated(node.taints, shape.tolerations)) is not None
        }
        for taint in sorted(taints, key=str):
            if is_lasting(taint):
                yield (
                    Change("tolerate-taint", f"tolerate the taint {taint}"),
                    partial(_tolerating, taint=taint),
                )

    def _asking_less(self) -> Iterator[_Candidate]:
        asked = dict.fromkeys(
            item for shape in self._shapes for item in sorted(shape.requests, key=_gpus_first)
        )
        for resource, amount in asked:
            if resource == "pods":
                continue
            step = _step(resource)

            def asking_for(
                steps: int, item: tuple[str, int] = (resource, amount), step: int = step
            ) -> _Candidate:
                less, more = comparable_amounts(item[0], steps * step, item[1])
                change = Change("ask-fewer", f"ask for {less} {item[0]} instead of {more}")
                return self._edited(change, partial(_asking, item=item, amount=steps * step))

            if not self._fits(asking_for(1)[1]):
                continue
            steps = _largest((amount - 1) // step, lambda count, ask=asking_for: self._fits(ask(count)[1]))  # type: ignore[misc]
            if steps:
                yield asking_for(steps)

    def _uncordoned(self) -> Iterator[_Candidate]:
        cordoned = [account.node for account in self._accounts.values() if account.node.unschedulable]
        for node in cordoned[:TRIES]:
            taints = tuple(taint for taint in node.taints if taint.key != f"{PASSING}unschedulable")
            opened = msgspec.structs.replace(node, unschedulable=False, taints=taints)
            if self._fits(changed := self._with_nodes({node.name: opened})):
                yield Change("uncordon-node", f"uncordon node {node.name}"), changed

    def _raised(self) -> Iterator[_Candidate]:
        """The lowest priority from which on preemption makes room, or the turn comes before those for whom
        it is held; every pod makes its own.
        """
        mine = min(pod.priority for pod in self._unit.pods)
        there = (pod for account in self._accounts.values() for pod in account.pods.values())
        there = (pod for pod in there if pod.key not in self._starting)
        keys = {pod.key for pod in self._unit.pods}
        steps = sorted({pod.priority for pod in there if pod.priority >= mine and not pod.terminating})
        for step in steps[:TRIES]:
            pods = {
                p.key: msgspec.structs.replace(p, priority=max(p.priority, step + 1)) for p in self._unit.pods
            }
            plan = decide(changed := self._with_pods(pods), self._policy)
            if served(plan, self._unit):
                ended = sum(
                    isinstance(action, Evict) and action.beneficiary in keys for action in plan.actions
                )
                price = f"{_pods(ended)} of lower priority" if ended else "nobody"
                text = f"raise the priority above {step} ({price} would end)"
                yield self._told(Change("raise-priority", text), self._unit.pods), changed
                break

    def _without_others(self) -> Iterator[_Candidate]:
        """Without the pods of one owner that hold something, or for whom room is held."""
        blamed = {
            (hold.pod.namespace, hold.pod.workload)
            for hold in in_the_way(self._after, self._unit)
            if not hold.pod.terminating and hold.pod.key not in self._starting and not self._is_ours(hold.pod)
        }
        there = {key: name for name, account in self._accounts.items() for key in account.pods}
        groups: dict[_Workload, list[Pod]] = {}
        for other in self._everybody.pods():
            owner = other.namespace, other.workload
            if owner in blamed and not other.terminating and (other.node in self._accounts or not other.node):
                groups.setdefault(owner, []).append(other)
        trial = Trial(self._after)
        searches = {trial.question(pod): trial.search(pod) for pod in self._unit.pods}.values()
        tries = 0
        for (namespace, workload), members in sorted(groups.items(), key=_least_dear):
            keys = {member.key for member in members}
            nodes = {there[key] for key in keys if key in there}
            accounts = [self._accounts[name].without(keys) for name in nodes]
            if tries < TRIES and any(s.allows(account) for s in searches for account in accounts):
                tries += 1
                if self._fits(changed := self._without_pods(keys)):
                    yield (
                        Change("end-workload", f"end {workload} in {namespace} ({_pods(len(keys))})"),
                        changed,
                    )

    def _is_ours(self, other: Pod) -> bool:
        """Whether a pod is of the gang that asks, or of a workload of its members."""
        if self._pod.gang is not None and other.gang_key == self._pod.gang_key:
            return True
        return any(
            (other.namespace, other.workload) == (member.namespace, member.workload)
            for member in self._unit.pods
        )

    def _more_nodes(self) -> Iterator[_Candidate]:
        """Empty copies of a node of each kind that a pod of the unit could use, as few as are enough."""
        trial = Trial(self._after)
        searches = {trial.question(pod): trial.search(pod) for pod in self._unit.pods}.values()
        kinds: dict[str, Node] = {}
        for account in self._accounts.values():
            node = at_its_best(account.node)
            gpus = (f"{n} {r}" for r, n in sorted(node.allocatable.items()) if n and is_gpu_resource(r))
            offered = ", ".join(gpus) or "no GPU"
            if offered not in kinds and any(
                search.allows(account_of(node, {}, NOTHING_KEPT)) for search in searches
            ):
                kinds[offered] = node
        most = len(self._unit.pods)
        for offered, node in sorted(kinds.items()):

            def without(spared: int, node: Node = node) -> Snapshot:
                return self._with_nodes({copy.name: copy for copy in copies(node, most - spared)})

            if self._fits(without(0)):
                spared = _largest(most - 1, lambda count, fewer=without: self._fits(fewer(count)))  # type: ignore[misc]
                what = "1 node" if most - spared == 1 else f"{most - spared} nodes"
                yield Change("add-nodes", f"add {what} like {node.name} ({offered})"), without(spared)

    def _told(self, change: Change, changed: Collection[Pod]) -> Change:
        """The change with the members of the gang that it is about."""
        if len(self._unit.pods) == 1:
            return change
        whom = "every pod"
        if len(changed) < len(self._unit.pods):
            names = sorted(pod.name for pod in changed)
            more = len(names) - NAMED
            whom = ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
        return Change(change.kind, f"{whom} of gang {self._unit.gang}: {change.message}")

    def _edited(self, change: Change, edit: _Edit) -> _Candidate:
        pods = [
            msgspec.structs.replace(pod, shape=shape)
            for pod in self._unit.pods
            if (shape := edit(pod.shape)) != pod.shape
        ]
        return self._told(change, pods), self._with_pods({pod.key: pod for pod in pods})

    def _with_pods(self, pods: Mapping[str, Pod]) -> Snapshot:
        return msgspec.structs.replace(self._snapshot, unbound={**self._snapshot.unbound, **pods})

    def _with_nodes(self, nodes: Mapping[str, Node]) -> Snapshot:
        return msgspec.structs.replace(self._snapshot, nodes={**self._snapshot.nodes, **nodes})

    def _without_pods(self, keys: set[str]) -> Snapshot:
        by_node = {
            name: pods if keys.isdisjoint(pods) else {k: pod for k, pod in pods.items() if k not in keys}
            for name, pods in self._snapshot.pods_by_node.items()
        }
        unbound = {key: pod for key, pod in self._snapshot.unbound.items() if key not in keys}
        return msgspec.structs.replace(self._snapshot, pods_by_node=by_node, unbound=unbound)

    def _fits(self, changed: Snapshot) -> bool:
        """Whether the unit fits on the fleet as the decision leaves it, with what is changed."""
        accounts = {name: self._account(changed, name) for name in changed.nodes}
        fleet = Ledger(changed, accounts, dict(self._after.promised_volumes))
        pods = [changed.unbound[pod.key] for pod in self._unit.pods]
        return self._unit.enough([placement.pod for placement in place(pods, Trial(fleet))])

    def _account(self, changed: Snapshot, name: str) -> NodeAccount:
        account = self._accounts.get(name)
        if account is None:
            return account_of(changed.nodes[name], {}, NOTHING_KEPT)
        here, left = self._snapshot.pods_by_node.get(name, {}), changed.pods_by_node.get(name, {})
        gone = here.keys() - left.keys() if here is not left else set()
        gone |= account.pods.keys() & (self._snapshot.unbound.keys() - changed.unbound.keys())
        if gone:
            account = account.without(gone)
        node = changed.nodes[name]
        return account if account.node is node else msgspec.structs.replace(account, node=node)


def _up_to(snapshot: Snapshot, policy: Policy, unit: Unit) -> Snapshot:
    """The snapshot without the pods that wait behind the unit, unless room is being made for them. Queues
    take turns, so nobody is surely behind.
    """
    if snapshot.queues:
        return snapshot
    queue = units(snapshot, policy.responsible)
    ahead = {pod.key for other in queue if other.order <= unit.order for pod in other.pods}
    unbound = {key: pod for key, pod in snapshot.unbound.items() if key in ahead or pod.nominated_node}
    return msgspec.structs.replace(snapshot, unbound=unbound)


def served(plan: Plan, unit: Unit) -> bool:
    """Whether the plan binds as many pods as the unit needs, or makes room for them, or keeps them back in
    their room until other pods' devices are confirmed.
    """
    done = {
        action.pod.key
        for action in plan.actions
        if isinstance(action, Bind | SelectNode | BindVolume)
        or (isinstance(action, Nominate) and action.node)
        or (isinstance(action, Unschedulable) and action.reasons[0].code == "WaitingForDevices")
    }
    return unit.enough([pod for pod in unit.pods if pod.key in done])


def _largest(most: int, works: Callable[[int], bool]) -> int:
    """The largest number up to `most` that works, or 0; smaller ones work if larger ones do."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if works(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _without_selector(shape: PodShape, item: tuple[str, str]) -> PodShape:
    return msgspec.structs.replace(shape, node_selector=tuple(i for i in shape.node_selector if i != item))


def _without(shape: PodShape, field: str) -> PodShape:
    return msgspec.structs.replace(shape, **{field: getattr(PodShape(), field)})


def _tolerating(shape: PodShape, taint: Taint) -> PodShape:
    if untolerated((taint,), shape.tolerations) is None:
        return shape
    toleration = Toleration(taint.key, "Exists", "", taint.effect)
    return msgspec.structs.replace(shape, tolerations=(*shape.tolerations, toleration))


def _asking(shape: PodShape, item: tuple[str, int], amount: int) -> PodShape:
    requests = tuple((item[0], amount) if request == item else request for request in shape.requests)
    return msgspec.structs.replace(shape, requests=requests)


def _gpus_first(request: tuple[str, int]) -> tuple[bool, str]:
    return not is_gpu_resource(request[0]), request[0]


def _step(resource: str) -> int:
    """In what steps people ask for a resource: tenths of a CPU, mebibytes, whole devices."""
    if resource == "cpu":
        return 100
    return 1 << 20 if is_bytes(resource) else 1


def _least_dear(item: tuple[_Workload, list[Pod]]) -> tuple[int, int, _Workload]:
    group, members = item
    return max(member.priority for member in members), len(members), group


def _pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"
