"""What objects say of gangs, kept as informers tell it: groups, owners that are gangs by their kind, and the
Jobs and CompositePodGroups of which a pod alone does not know.

A pod names its gang itself, or its Job or PodGroup has to be asked (`resolved`). Objects come in any order,
so each change says which pods it may concern (`on_change` gets their links: the uid of an owner or the key of
a gang).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from gpufleet.fleet.gangs import Gang
from gpufleet.fleet.pods import GangRef, Pod
from gpufleet.kube.conventions import native
from gpufleet.kube.conventions.gangs import GANG_KINDS, JOBS, GangKind, job_gang
from gpufleet.kube.conventions.owners import Job
from gpufleet.kube.informers import Change, Unread
from gpufleet.kube.kinds import Kind

Handler = Callable[[Change[Any]], None]

_FIRST = 0
_LAST = len(GANG_KINDS)
"""The ranks of CompositePodGroups and of Jobs; those of the other kinds lie between."""


class GangSource(msgspec.Struct, frozen=True):
    """One kind that tells of gangs, served or not: what is decoded, and who takes its changes and what does
    not decode.
    """

    kind: Kind
    type: type[Any]
    handler: Handler
    unread: Unread | None = None


class GangObjects:
    """The gangs that objects describe. `on_change` is called with the links of pods whose gang may be another
    one now, also when there are none but a gang changed.
    """

    def __init__(self, on_change: Callable[[Iterable[str]], None]) -> None:
        self._on_change = on_change
        self._told: dict[str, dict[int, Gang]] = {}
        self._by_object: dict[tuple[int, str], tuple[Gang, ...]] = {}
        self._gangs: dict[str, Gang] = {}
        self._owners: dict[str, GangRef] = {}
        self._parts: dict[str, GangRef] = {}
        self._groups: dict[str, native.PodGroup] = {}
        self._composites: dict[str, native.PodGroup] = {}

    @property
    def gangs(self) -> Mapping[str, Gang]:
        """Every gang that an object describes, by key: of several objects what the first kind says."""
        return self._gangs

    @property
    def sources(self) -> tuple[GangSource, ...]:
        """The kinds to list and watch."""
        ranked = enumerate(GANG_KINDS, _FIRST + 1)
        return (
            *(
                GangSource(one.kind, one.type, self._handler(rank, one), self._unread(rank, one))
                for rank, one in ranked
            ),
            GangSource(native.COMPOSITE_POD_GROUPS, native.PodGroup, self._composite_changed),
            GangSource(JOBS, Job, self._job_changed),
        )

    def link(self, pod: Pod) -> str:
        """What decides the gang of a pod beside itself: the uid of its Job or the key of its native PodGroup;
        empty when nothing does.
        """
        if pod.gang is None:
            return pod.owner if pod.owner_kind == JOBS.kind else ""
        return pod.gang_key if pod.gang.rule == native.PODGROUP_RULE else ""

    def resolved(self, pod: Pod) -> Pod:
        """The pod with the gang that its Job, or the CompositePodGroup above its PodGroup, puts it in."""
        if pod.gang is None:
            ref = self._owners.get(pod.owner) if pod.owner else None
        else:
            ref = self._parts.get(pod.gang_key) if pod.gang.rule == native.PODGROUP_RULE else None
        return msgspec.structs.replace(pod, gang=ref) if ref is not None else pod

    def _handler(self, rank: int, kind: GangKind) -> Handler:
        def handler(change: Change[Any]) -> None:
            changed = self._tell(rank, change.key, kind.gangs(change.new) if change.new is not None else ())
            if kind.type is native.PodGroup:
                self._keep(self._groups, change)
                changed = self._compose() or changed
            if changed:
                self._on_change(())

        return handler

    def _unread(self, rank: int, kind: GangKind) -> Unread:
        def unread(key: str, node: str | None) -> None:
            namespace, _, name = key.rpartition("/")
            problem = f"the {kind.kind.kind} {key} of {kind.kind.group} cannot be read"
            gang = Gang(f"{namespace}/{kind.prefix}{name}", kind.kind.kind, problem=problem)
            if self._tell(rank, key, (gang,) if node is not None else ()):
                self._on_change(())

        return unread

    def _job_changed(self, change: Change[Job]) -> None:
        gang = job_gang(change.new) if change.new is not None else None
        changed = self._tell(_LAST + 1, change.key, (gang,) if gang is not None else ())
        uid = (change.new or change.old).metadata.uid  # type: ignore[union-attr]
        ref = GangRef(gang.key.partition("/")[2], None, gang.rule) if gang is not None else None
        if self._owners.get(uid) != ref:
            if ref is None:
                del self._owners[uid]
            else:
                self._owners[uid] = ref
            self._on_change((uid,))
        elif changed:
            self._on_change(())

    def _composite_changed(self, change: Change[native.PodGroup]) -> None:
        self._keep(self._composites, change)
        self._compose()

    def _compose(self) -> bool:
        """Work out the gangs of CompositePodGroups anew; whether there are any, or were."""
        if not self._composites and not self._parts:
            return False
        gangs, parts = native.composite_gangs(self._groups, self._composites)
        before = {key for rank, key in self._by_object if rank == _FIRST}
        for key in before | gangs.keys():
            self._tell(_FIRST, key, (gangs[key],) if key in gangs else ())
        other = [key for key in self._parts.keys() | parts if self._parts.get(key) != parts.get(key)]
        self._parts = parts
        self._on_change(other)
        return True

    def _keep(self, table: dict[str, native.PodGroup], change: Change[native.PodGroup]) -> None:
        if change.new is None:
            table.pop(change.key, None)
        else:
            table[change.key] = change.new

    def _tell(self, rank: int, key: str, gangs: tuple[Gang, ...]) -> bool:
        """Note what the object `key` of a kind says; whether that changes anything."""
        before = self._by_object.pop((rank, key), ())
        if gangs:
            self._by_object[rank, key] = gangs
        if gangs == before:
            return False
        for gang in before:
            del self._told[gang.key][rank]
        for gang in gangs:
            self._told.setdefault(gang.key, {})[rank] = gang
        for name in {gang.key for gang in (*before, *gangs)}:
            told = self._told[name]
            if told:
                self._gangs[name] = told[min(told)]
            else:
                del self._told[name], self._gangs[name]
        return True
