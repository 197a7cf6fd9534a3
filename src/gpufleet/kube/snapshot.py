"""The live snapshot: what the informers say, plus what this process has decided and the API server has not
told yet.

Every change replaces only the mapping it touches, so an unchanged node keeps the identity of its pods and
caches over the snapshot stay valid. A decision that is being written is *assumed*: the pod counts as bound
(nominated, ending) from that moment, until the informer confirms it or the write fails and it is forgotten.
`sources` names the kinds a snapshot is made of; `load_snapshot` makes one from plain lists, for a command
that asks once.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from gpufleet.fleet.devices import DevicePick
from gpufleet.fleet.mixes import MixCounter
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import DisruptionBudget, Snapshot
from gpufleet.fleet.volumes import AttachLimits, Claim, CSIDriver, StorageCapacity, StorageClass, Volume
from gpufleet.kube import kinds, objects
from gpufleet.kube import storage_values as storage
from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.conventions.queues import CONVENTIONS, QueueConvention
from gpufleet.kube.gang_objects import GangObjects
from gpufleet.kube.gpunode import GPUNode
from gpufleet.kube.informers import Change, Unread
from gpufleet.kube.kinds import GPUFLEET_GROUP, Kind
from gpufleet.kube.metrics import INFORMER_HANDLER_FAILURES
from gpufleet.kube.node_table import NodeTable
from gpufleet.kube.queue_table import QueueTable
from gpufleet.kube.values import budget_value, pod_value

log = logging.getLogger("gpufleet.kube.snapshot")

T = TypeVar("T")
V = TypeVar("V")


class Assumption(msgspec.Struct, frozen=True):
    """What was decided about a pod and is not confirmed yet; None where nothing was. `picks` are those of a
    pod that is bound to `node`.
    """

    uid: str
    node: str | None = None
    picks: tuple[DevicePick, ...] = ()
    nominated_node: str | None = None
    terminating: bool = False


class Source(msgspec.Struct, frozen=True):
    """One kind that a snapshot is made of: how it is decoded and who takes its changes, and who is told of
    objects that do not decode. There are none of an `optional` kind where the cluster does not serve it.
    """

    kind: Kind
    type: type[Any]
    handler: Callable[[Change[Any]], None]
    unread: Unread | None = None
    optional: bool = False


class SnapshotBuilder:
    """Keeps a snapshot. `on_change` is called after every change that a decision could care about."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self.nodes = NodeTable(on_change)
        self._pods: dict[str, Pod] = {}
        self._assumed: dict[str, Assumption] = {}
        self._effective: dict[str, Pod] = {}
        self._by_node: dict[str, Mapping[str, Pod]] = {}
        self._unbound: dict[str, Pod] = {}
        self._successes: dict[tuple[str, str], Counter[str]] = {}
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._claims: dict[str, Claim] = {}
        self._volumes: dict[str, Volume] = {}
        self._classes: dict[str, StorageClass] = {}
        self._drivers: dict[str, CSIDriver] = {}
        self._capacities: dict[str, StorageCapacity] = {}
        self._limits: dict[str, AttachLimits] = {}
        self._budgets: dict[str, DisruptionBudget] = {}
        self._mix = MixCounter()
        self._gang_objects = GangObjects(self._gangs_changed)
        self._links: dict[str, str] = {}
        self._linked: dict[str, dict[str, None]] = {}
        self._queues = QueueTable(on_change)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The kinds to list and watch."""
        return (
            Source(kinds.NODES, objects.Node, self.nodes.node_changed),
            Source(kinds.GPU_NODES, GPUNode, self.nodes.gpu_node_changed, optional=True),
            Source(kinds.PODS, objects.Pod, self.pod_changed, self.pod_unread),
            Source(kinds.NAMESPACES, objects.Namespace, self.namespace_changed),
            self._table(
                kinds.PERSISTENT_VOLUME_CLAIMS,
                objects.PersistentVolumeClaim,
                self._claims,
                storage.claim_value,
            ),
            self._table(
                kinds.PERSISTENT_VOLUMES, objects.PersistentVolume, self._volumes, storage.volume_value
            ),
            self._table(
                kinds.STORAGE_CLASSES, objects.StorageClass, self._classes, storage.storage_class_value
            ),
            self._table(kinds.CSI_DRIVERS, objects.CSIDriver, self._drivers, storage.csi_driver_value),
            self._table(
                kinds.CSI_STORAGE_CAPACITIES,
                objects.CSIStorageCapacity,
                self._capacities,
                storage.capacity_value,
            ),
            self._table(kinds.CSI_NODES, objects.CSINode, self._limits, storage.attach_limits_value),
            self._table(kinds.DISRUPTION_BUDGETS, objects.PodDisruptionBudget, self._budgets, budget_value),
            *(
                Source(one.kind, one.type, one.handler, one.unread, optional=True)
                for one in self._gang_objects.sources
            ),
            *(self._queue_source(convention) for convention in CONVENTIONS),
        )

    def snapshot(self) -> Snapshot:
        """The snapshot of this moment; it does not change afterwards."""
        return Snapshot(
            nodes=dict(self.nodes.nodes),
            devices=self.nodes.devices,
            pods_by_node=dict(self._by_node),
            unbound=dict(self._unbound),
            gang_successes=dict(self._successes),
            gangs=dict(self._gang_objects.gangs),
            namespaces=dict(self._namespaces),
            claims=dict(self._claims),
            volumes=dict(self._volumes),
            storage_classes=dict(self._classes),
            csi_drivers=dict(self._drivers),
            storage_capacities=tuple(self._capacities.values()),
            attach_limits=dict(self._limits),
            budgets=tuple(self._budgets.values()),
            mix=self._mix.mix(),
            queues=self._queues.tree(),
        )

    def pod(self, key: str) -> Pod | None:
        """A pod as the snapshot has it (assumptions included), finished ones too."""
        return self._effective.get(key)

    def observed(self) -> Iterable[Pod]:
        """Every pod as the server has shown it last, without assumptions."""
        return self._pods.values()

    def __contains__(self, key: object) -> bool:
        """Whether there is a pod of this key."""
        return key in self._effective

    def claim(self, key: str) -> Claim | None:
        """A persistent volume claim by `namespace/name`."""
        return self._claims.get(key)

    def pod_changed(self, change: Change[objects.Pod]) -> None:
        """A pod came, changed or went."""
        if change.new is None:
            self._leave_out(change.key)
        else:
            try:
                self._pods[change.key] = pod_value(change.new)
            except Exception:
                # Whatever it is about this pod, its GPUs must not count as free.
                INFORMER_HANDLER_FAILURES.labels(kinds.PODS.plural).inc()
                log.exception("left out a pod that cannot be read", extra={"object": change.key})
                self.pod_unread(change.key, change.new.spec.node_name)
                return
            self._link(change.key, self._gang_objects.link(self._pods[change.key]))
            self._confirm(change.key)
            self._refresh(change.key)
        self.nodes.note_unread(change.key, "")

    def pod_unread(self, key: str, node: str | None) -> None:
        """A pod exists that cannot be read, on `node` or wherever it was last: nobody else is placed there.
        None once it is gone.
        """
        known = self._effective.get(key)
        last = known.node if known is not None else self.nodes.last_unread_on(key)
        self._leave_out(key)
        self.nodes.note_unread(key, node or last if node is not None else "")

    def assume(self, pod: Pod, **decided: Any) -> None:
        """Count a decision about `pod` as carried out: `node` with `picks`, `nominated_node`, `terminating`.

        A decision about a pod that is gone, or replaced by another one of its name, is nobody's.
        """
        if not self._is_current(pod):
            return
        assumption = self._assumed.get(pod.key, Assumption(pod.uid))
        self._assumed[pod.key] = msgspec.structs.replace(assumption, **decided)
        self._confirm(pod.key)
        self._refresh(pod.key)

    def forget(self, pod: Pod, **decided: Any) -> None:
        """Take back what was assumed about `pod`, because the write failed: all of it, or what is named.

        What has been decided anew since then stands.
        """
        assumption = self._assumed.get(pod.key)
        if assumption is None or assumption.uid != pod.uid:
            return
        void = {
            field: getattr(Assumption(pod.uid), field)
            for field, value in decided.items()
            if getattr(assumption, field) == value
        }
        self._assumed[pod.key] = (
            msgspec.structs.replace(assumption, **void) if decided else Assumption(pod.uid)
        )
        self._confirm(pod.key)
        self._refresh(pod.key)

    def namespace_changed(self, change: Change[objects.Namespace]) -> None:
        """A namespace came, changed its labels or went."""
        labels = change.new.metadata.labels if change.new is not None else None
        if self._namespaces.get(change.key) == labels:
            return
        if labels is None:
            del self._namespaces[change.key]
        else:
            self._namespaces[change.key] = labels
        self._on_change()

    def _table(self, kind: Kind, type_: type[T], table: dict[str, V], convert: Callable[[T], V]) -> Source:
        """A kind whose objects are converted one by one into a table."""

        def handler(change: Change[T]) -> None:
            if change.new is None:
                table.pop(change.key, None)
            else:
                value = convert(change.new)
                if table.get(change.key) == value:
                    return
                table[change.key] = value
            self._on_change()

        return Source(kind, type_, handler)

    def _gangs_changed(self, links: Iterable[str]) -> None:
        """Gangs changed, and with them those of the pods that are linked so."""
        for link in links:
            for key in list(self._linked.get(link, ())):
                self._refresh(key)
        self._on_change()

    def _link(self, key: str, link: str) -> None:
        """Note on what the gang of a pod depends beside the pod; an empty text for nothing."""
        before = self._links.pop(key, "")
        if before and before != link:
            del self._linked[before][key]
            if not self._linked[before]:
                del self._linked[before]
        if link:
            self._links[key] = link
            self._linked.setdefault(link, {})[key] = None

    def _queue_source(self, convention: QueueConvention) -> Source:
        """A kind of queue object; only our own is surely there."""
        changed, unread = self._queues.listen(convention)
        return Source(convention.kind, convention.type, changed, unread, optional=True)

    def _leave_out(self, key: str) -> None:
        self._link(key, "")
        self._pods.pop(key, None)
        self._assumed.pop(key, None)
        self._refresh(key)

    def _is_current(self, pod: Pod) -> bool:
        known = self._pods.get(pod.key)
        return known is not None and known.uid == pod.uid

    def _confirm(self, key: str) -> None:
        """Drop the parts of an assumption that the informer shows, or that what it shows makes void."""
        assumption = self._assumed.get(key)
        if assumption is None:
            return
        pod = self._pods[key]
        nominated = (
            None if pod.node or assumption.nominated_node == pod.nominated_node else assumption.nominated_node
        )
        left = Assumption(
            assumption.uid,
            node=None if pod.node else assumption.node,
            picks=() if pod.node else assumption.picks,
            nominated_node=nominated,
            terminating=assumption.terminating and not pod.terminating,
        )
        if assumption.uid != pod.uid or pod.finished or left == Assumption(assumption.uid):
            del self._assumed[key]
        else:
            self._assumed[key] = left

    def _refresh(self, key: str) -> None:
        old, new = self._effective.get(key), self._assumed_view(key)
        if old == new:
            return
        if old is None or new is None or old.shape is not new.shape:
            self._recount(old, new)
        if old is not None:
            self._take_out(old)
        if new is None:
            self._effective.pop(key, None)
        else:
            self._effective[key] = new
            self._put_in(new)
        if _shown(old) != _shown(new):
            self._on_change()

    def _recount(self, old: Pod | None, new: Pod | None) -> None:
        if old is not None:
            self._mix.add(old.shape, -1)
        if new is not None:
            self._mix.add(new.shape)

    def _assumed_view(self, key: str) -> Pod | None:
        pod = self._pods.get(key)
        if pod is None:
            return None
        pod = self._gang_objects.resolved(pod)
        assumption = self._assumed.get(key)
        if assumption is None:
            return pod
        return msgspec.structs.replace(
            pod,
            node=pod.node or assumption.node or "",
            picks=pod.picks if pod.node else assumption.picks,
            nominated_node=pod.nominated_node
            if assumption.nominated_node is None
            else assumption.nominated_node,
            terminating=pod.terminating or assumption.terminating,
        )

    def _take_out(self, pod: Pod) -> None:
        if pod.finished:
            if pod.gang is not None and pod.phase == "Succeeded":
                left = self._successes[pod.gang_part] - Counter((pod.gang.subgroup,))
                if left:
                    self._successes[pod.gang_part] = left
                else:
                    del self._successes[pod.gang_part]
        elif pod.node:
            rest = {key: other for key, other in self._by_node[pod.node].items() if key != pod.key}
            if rest:
                self._by_node[pod.node] = rest
            else:
                del self._by_node[pod.node]
        else:
            self._unbound.pop(pod.key, None)

    def _put_in(self, pod: Pod) -> None:
        if pod.finished:
            if pod.gang is not None and pod.phase == "Succeeded":
                before = self._successes.get(pod.gang_part, Counter())
                self._successes[pod.gang_part] = before + Counter((pod.gang.subgroup,))
        elif pod.node:
            self._by_node[pod.node] = {**self._by_node.get(pod.node, {}), pod.key: pod}
        else:
            self._unbound[pod.key] = pod


def _shown(pod: Pod | None) -> Pod | tuple[str, str] | None:
    """What a decision reads of a pod: not how far it got or what it was told, and of one that has ended only
    that a gang needs one member less.
    """
    if pod is None or pod.phase == "Failed":
        return None
    if pod.phase == "Succeeded":
        return pod.gang_part if pod.gang is not None else None
    return msgspec.structs.replace(pod, phase="", reported=False)


def _is_none_of_ours(kind: Kind, error: ApiError) -> bool:
    """Whether an unprivileged user is refused a vendor's kind: the server says so even where it has no such
    kind.
    """
    return error.status == http.HTTPStatus.FORBIDDEN and kind.group != GPUFLEET_GROUP


async def load_snapshot(client: Client) -> tuple[Snapshot, SnapshotBuilder]:
    """A snapshot from one list of each kind."""
    builder = SnapshotBuilder()

    async def load(source: Source) -> None:
        try:
            listing = await client.list(source.kind, type=source.type)
        except ApiError as error:
            if source.optional and (error.not_found or _is_none_of_ours(source.kind, error)):
                return
            raise
        if source.unread is not None:
            for key, node in listing.skipped.items():
                source.unread(key, node)
        for item in listing.items:
            source.handler(Change(item.metadata.key, None, item))

    await asyncio.gather(*(load(source) for source in builder.sources))
    return builder.snapshot(), builder
