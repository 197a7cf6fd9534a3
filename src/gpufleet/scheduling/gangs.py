"""Gangs: pods that are placed together or not at all, and the order in which pods are decided.

A unit of decision is one pod or one gang. A gang needs `minimum` pods in all; those already bound and those
that have succeeded count, so a gang whose member was replaced needs only the replacement. Successes count as
long as their owner has a pod of the gang that waits or runs: once all pods of an owner have ended, they were
an earlier run under the same name. Where a gang has subgroups, a leaf is placed with its own minimum or not
at all, and as many are placed as the tree needs. Units are taken by priority, then units for which room is
already being made, then units that are partly bound, then by age.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from gpufleet.fleet.gangs import Gang, cheapest_leaves, incomplete, missing, missing_by_subgroup
from gpufleet.fleet.pods import Pod, gpu_share, gpus_requested
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot

_NAMED = 3
"""How many members that are kept back are named."""


class Unit(msgspec.Struct, frozen=True):
    """Pods that are decided together. At least `needed` of `pods` must be placed, else none is.

    `running` members are bound already; `surplus` says that the gang needs none of `pods`; `problem` says why
    the unit cannot even be tried. `tree` is the gang where it has subgroups, and `counted` says how many of
    each count already. `near` is the gang where it says how near to each other its pods are to be.
    """

    pods: tuple[Pod, ...]
    needed: int = 1
    minimum: int = 1
    running: int = 0
    gang: str = ""
    surplus: bool = False
    problem: Reason | None = None
    tree: Gang | None = None
    counted: tuple[tuple[str, int], ...] = ()
    near: Gang | None = None

    @property
    def must_be_near(self) -> bool:
        """Whether some of its pods must share a level of the topology."""
        return self.near is not None and self.near.must_be_near

    def accepted(self, pods: Sequence[Pod]) -> Sequence[Pod]:
        """Those of placed pods that stay: not a part of a subgroup that needs more; none if that is less than
        the unit needs.
        """
        kept = pods
        if self.tree is not None:
            short = self.short(pods)
            kept = [pod for pod in pods if subgroup_of(pod) not in short]
            if missing(self.tree, self._counts(kept)):
                return ()
        return kept if len(kept) >= self.needed else ()

    def enough(self, pods: Sequence[Pod]) -> bool:
        """Whether the unit runs with these pods of it."""
        return bool(self.accepted(pods))

    def short(self, pods: Iterable[Pod]) -> tuple[str, ...]:
        """The subgroups that have not all that they need when these pods are placed."""
        return incomplete(self.tree, self._counts(pods)) if self.tree is not None else ()

    def _counts(self, pods: Iterable[Pod]) -> Mapping[str, int]:
        return Counter(dict(self.counted)) + Counter(map(subgroup_of, pods))

    @property
    def nominated(self) -> bool:
        """Whether room is being made for a part of it."""
        return any(pod.nominated_node for pod in self.pods)

    @property
    def order(self) -> tuple[int, int, float, int, str]:
        """The place in the queue; smaller goes first. Of equal age (the API server counts in seconds) the
        larger goes first: what is large fits only while there is much room.
        """
        return (
            -max(pod.priority for pod in self.pods),
            0 if self.nominated else 1 if self.running else 2,
            min(pod.created for pod in self.pods),
            -sum(gpu_share(pod.shape) for pod in self.pods),
            self.gang or self.pods[0].key,
        )


def units(snapshot: Snapshot, responsible: Callable[[Pod], bool]) -> list[Unit]:
    """What waits for a decision, in the order in which it is taken.

    A pod that another scheduler owns, that is ending or that is gated is not decided about; a gang counts
    such members as missing, and says so.
    """
    singles: list[Unit] = []
    gangs: defaultdict[str, list[Pod]] = defaultdict(list)
    kept_back: defaultdict[str, list[Pod]] = defaultdict(list)
    for pod in snapshot.unbound.values():
        if pod.terminating or pod.gates or not responsible(pod):
            if pod.gang is not None:
                kept_back[pod.gang_key].append(pod)
        elif pod.gang is None:
            singles.append(Unit((pod,)))
        else:
            gangs[pod.gang_key].append(pod)
    if gangs:
        running = running_members(snapshot, gangs)
        singles.extend(
            gang_unit(key, pods, running.get(key, ()), snapshot, kept_back.get(key, ()))
            for key, pods in gangs.items()
        )
    return sorted(singles, key=lambda unit: unit.order)


def running_members(snapshot: Snapshot, gangs: Iterable[str]) -> Mapping[str, list[Pod]]:
    """The pods of each gang that are bound and stay: not those that are terminating."""
    wanted = set(gangs)
    running: defaultdict[str, list[Pod]] = defaultdict(list)
    for pods in snapshot.pods_by_node.values():
        for pod in pods.values():
            if pod.gang is not None and not pod.terminating and pod.gang_key in wanted:
                running[pod.gang_key].append(pod)
    return running


def gang_unit(
    key: str,
    members: Sequence[Pod],
    mates: Sequence[Pod],
    snapshot: Snapshot,
    kept_back: Sequence[Pod] = (),
) -> Unit:
    """The unit of a gang of which `members` wait and `mates` are bound; `kept_back` are not decided about."""
    gang = described(key, members, snapshot.gangs)
    pods = tuple(sorted(members, key=_largest_first))
    running = len(mates)
    if gang is None:
        rule = next(pod.gang.rule for pod in pods if pod.gang is not None)
        text = f"the {rule} that says how many pods gang {key} needs cannot be found"
        return Unit(pods, gang=key, running=running, problem=Reason("GangIncomplete", text, key))
    if gang.minimum is None:
        return Unit(pods, gang=key, running=running, problem=Reason("GangInvalid", gang.problem, key))
    counted = _counted(members, mates, snapshot)
    done = sum(counted.values())
    tree = gang if gang.subgroups else None
    still = missing(tree, counted) if tree is not None else 0
    if done + len(pods) < gang.minimum:
        text = f"gang {key} needs {gang.minimum} pods and {_there(done + len(pods), pods, kept_back)}"
        evidence: dict[str, int | str] = {"need": gang.minimum, "have": done + len(pods)}
        reason = Reason("GangIncomplete", text, key, evidence=evidence)
        return Unit(pods, minimum=gang.minimum, gang=key, running=running, problem=reason)
    surplus = done >= gang.minimum and not still
    near = gang if gang.says_where else None
    if tree is None:
        return Unit(pods, max(gang.minimum - done, 1), gang.minimum, running, key, surplus, near=near)
    if lacking := _lacking(tree, counted + Counter(map(subgroup_of, pods))):
        return Unit(pods, minimum=gang.minimum, gang=key, running=running, problem=lacking)
    needed = gang.minimum - done
    if surplus:
        here = set(map(subgroup_of, pods))
        lacks = (leaf.minimum - counted[leaf.name] for leaf in tree.leaves if leaf.name in here)
        needed = min(lacks, default=1)
    return Unit(
        _needed_first(pods, tree, counted),
        max(needed, still, 1),
        gang.minimum,
        running,
        key,
        surplus,
        tree=tree,
        counted=tuple(sorted(counted.items())),
        near=near,
    )


def _counted(members: Iterable[Pod], mates: Iterable[Pod], snapshot: Snapshot) -> Counter[str]:
    """How many members of each subgroup are bound, or have succeeded in this run."""
    counted = Counter(map(subgroup_of, mates))
    for part in {pod.gang_part for pod in (*members, *mates)}:
        counted.update(snapshot.gang_successes.get(part, {}))
    return counted


def described(key: str, members: Iterable[Pod], gangs: Mapping[str, Gang]) -> Gang | None:
    """What is known of a gang: what its object says, or else what its pods agree on; None when nobody says
    anything.
    """
    refs = {pod.gang for pod in members if pod.gang is not None}
    for name in sorted({ref.described_by or key for ref in refs}):
        if name in gangs:
            return gangs[name]
    stated = {
        ref.stated or Gang(key, ref.rule, ref.minimum)
        for ref in refs
        if ref.minimum is not None or ref.problem
    }
    problem = next((ref.problem for ref in sorted(refs, key=lambda ref: ref.problem) if ref.problem), "")
    if not stated:
        return None
    if len(stated) == 1 and not problem:
        return stated.pop()
    rules = ", ".join(sorted({ref.rule for ref in refs}))
    return Gang(key, rules, problem=problem or f"the pods of gang {key} state different sizes")


def gang_minimum(key: str, members: Sequence[Pod], gangs: Mapping[str, Gang]) -> int:
    """How many pods a gang needs: where its pods disagree the most that one says, 0 where nobody says so."""
    known = described(key, members, gangs)
    if known is not None and known.minimum is not None:
        return known.minimum
    return max((pod.gang.minimum or 0 for pod in members if pod.gang is not None), default=0)


def subgroup_of(pod: Pod) -> str:
    """The part of its gang that a pod belongs to; empty without."""
    return pod.gang.subgroup if pod.gang is not None else ""


def _needed_first(pods: Sequence[Pod], tree: Gang, counted: Mapping[str, int]) -> tuple[Pod, ...]:
    """The pods in the order in which they are placed: first as many of each subgroup as it needs. Where some
    subgroups suffice, one after the other, so that each of them is whole before the next one takes room:
    first those that complete the gang with the fewest pods.
    """
    wanted = {leaf.name: leaf.minimum - counted.get(leaf.name, 0) for leaf in tree.leaves}
    first: list[Pod] = []
    rest: list[Pod] = []
    for pod in pods:
        group = subgroup_of(pod)
        (first if wanted.get(group, 0) > 0 else rest).append(pod)
        wanted[group] = wanted.get(group, 0) - 1
    if tree.optional_subgroups:
        lacks = missing_by_subgroup(tree, counted)
        cheapest = cheapest_leaves(tree, counted)
        turns = {
            leaf: (leaf not in cheapest, tuple((lacks[name], name) for name in path))
            for leaf, path in tree.paths.items()
        }
        first.sort(key=lambda pod: turns[subgroup_of(pod)])
    return (*first, *rest)


def _lacking(tree: Gang, counts: Mapping[str, int]) -> Reason | None:
    """Of which subgroup there must be more pods; None when there are enough of all."""
    if not missing(tree, counts):
        return None
    short = [leaf for leaf in tree.leaves if counts.get(leaf.name, 0) < leaf.minimum]
    leaf = short[0]
    have = counts.get(leaf.name, 0)
    pods = "1 pod" if leaf.minimum == 1 else f"{leaf.minimum} pods"
    there = "1 is there" if have == 1 else f"{have} are there"
    more = f", and {len(short) - 1} more subgroups are not complete" if len(short) > 1 else ""
    text = f"gang {tree.key} needs {pods} of subgroup {leaf.name} and {there}{more}"
    evidence: dict[str, int | str] = {"need": leaf.minimum, "have": have, "subgroup": leaf.name}
    return Reason("GangIncomplete", text, tree.key, evidence=evidence)


def _there(count: int, pods: Sequence[Pod], kept_back: Sequence[Pod]) -> str:
    """How many members there are, and what keeps those back that do not count."""
    if kept_back:
        names = sorted(kept_back, key=lambda pod: pod.name)
        told = [f"{pod.name} {_kept_back_by(pod)}" for pod in names[:_NAMED]]
        if len(names) > _NAMED:
            told.append(f"{len(names) - _NAMED} more are kept back, too")
        exist = count + len(kept_back)
        return f"{exist} exist, but {', '.join(told)}"
    there = "1 is there" if count == 1 else f"{count} are there"
    if count == 1 and pods[0].owner_kind == "StatefulSet":
        return (
            f"{there}; a StatefulSet makes the next one when it runs, unless podManagementPolicy is Parallel"
        )
    return there


def _kept_back_by(pod: Pod) -> str:
    if pod.terminating:
        return "is being deleted"
    return f"is gated by {', '.join(pod.gates)}" if pod.gates else f"is left to scheduler {pod.scheduler}"


def _largest_first(pod: Pod) -> tuple[int, float, int, str]:
    return (-gpus_requested(pod.shape), pod.created, len(pod.name), pod.name)
