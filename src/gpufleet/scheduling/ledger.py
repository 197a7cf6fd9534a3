"""The ledger: what each node has, what is used on it, and by whom.

An account is a value; placing a pod makes a new account for one node, so a fork of the ledger is a copy of
one mapping and a trial costs nothing to abandon. The ledger is only a cache of the snapshot: `Ledger.build`
with a previous ledger recomputes the nodes whose pods changed and equals a rebuild (test_ledger guards it).
Terminating pods count as used until they are gone, as the kubelet counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.fleet.devices import WHOLE_RESOURCE
from gpufleet.fleet.fractions import FRACTION_RESOURCE, NOTHING_CARRIED, Carried
from gpufleet.fleet.gpu_prices import Values, part_values
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import HostPort, Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.holdings import Holdings
from gpufleet.scheduling.kept_searches import KeptSearches

NOTHING_KEPT: frozenset[str] = frozenset()


class NodeAccount(msgspec.Struct, frozen=True):
    """One node, its pods by key, and the sums that filters and scores read.

    `kept` are GPUs that carry fractions of no pod any more, and that the agent has yet to give back.
    """

    node: Node
    pods: Mapping[str, Pod]
    used: Mapping[str, int]
    ports: tuple[HostPort, ...]
    anti_affine: tuple[Pod, ...]
    carried: Carried = NOTHING_CARRIED
    kept: frozenset[str] = NOTHING_KEPT

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name

    def is_of(self, node: Node, pods: Mapping[str, Pod], values: Values) -> bool:
        """Whether it was made from these very objects."""
        return self.node is node and self.pods is pods and self.carried.values is values

    def free(self, resource: str) -> int:
        """What is left of a resource; negative when the node is overcommitted."""
        return self.node.allocatable.get(resource, 0) - self.used.get(resource, 0)

    def with_pod(self, pod: Pod) -> NodeAccount:
        """This account with one more pod."""
        used = dict(self.used)
        for resource, amount in pod.shape.requests:
            used[resource] = used.get(resource, 0) + amount
        return NodeAccount(
            self.node,
            {**self.pods, pod.key: pod},
            used,
            self.ports + pod.shape.host_ports,
            (*self.anti_affine, pod) if pod.shape.anti_affinity else self.anti_affine,
            _carry(pod, self.node, self.carried, used) if pod.shape.fraction else self.carried,
            self.kept,
        )

    def without(self, keys: Iterable[str]) -> NodeAccount:
        """This account without the named pods; names that are not here are ignored."""
        gone = set(keys)
        pods = {key: pod for key, pod in self.pods.items() if key not in gone}
        return account_of(self.node, pods, self.kept, self.carried.values)

    def ending(self, keys: Iterable[str]) -> NodeAccount:
        """This account with the named pods terminating: they hold what they hold until they are gone."""
        doomed = set(keys)
        pods = {
            key: msgspec.structs.replace(pod, terminating=True) if key in doomed else pod
            for key, pod in self.pods.items()
        }
        return account_of(self.node, pods, self.kept, self.carried.values)


def account_of(
    node: Node, pods: Mapping[str, Pod], kept: frozenset[str] | None = None, values: Values = ()
) -> NodeAccount:
    """The account of a node that runs `pods`, computed from nothing else; `kept` is known where they are only
    some of those that run there, and `values` are those of idle parts of GPUs.
    """
    kept = _kept(node, pods) if kept is None else kept
    carried = NOTHING_CARRIED
    if kept or node.sick or values:
        carried = Carried(dict.fromkeys(sorted(kept), 0), closed=frozenset(node.sick), values=values)
    used: dict[str, int] = {WHOLE_RESOURCE: carried.gpus} if kept else {}
    ports: list[HostPort] = []
    for pod in pods.values():
        for resource, amount in pod.shape.requests:
            used[resource] = used.get(resource, 0) + amount
        ports.extend(pod.shape.host_ports)
    anti_affine = tuple(pod for pod in pods.values() if pod.shape.anti_affinity)
    # Where it is known which GPUs a pod has, they are counted before others choose.
    for pod in sorted((pod for pod in pods.values() if pod.shape.fraction), key=lambda pod: not pod.picks):
        carried = _carry(pod, node, carried, used)
    return NodeAccount(node, pods, used, tuple(ports), anti_affine, carried, kept)


def _kept(node: Node, pods: Mapping[str, Pod]) -> frozenset[str]:
    if not node.carrying:
        return NOTHING_KEPT
    parts = [pick.devices for pod in pods.values() if pod.shape.fraction for pick in pod.picks]
    return frozenset(node.carrying).difference(*parts)


def _carry(pod: Pod, node: Node, carried: Carried, used: dict[str, int]) -> Carried:
    """Count the fraction of a pod; a GPU that carries fractions counts in `used` as one that is used."""
    fraction = pod.shape.fraction
    milli = fraction.on(node) if fraction else None
    if fraction is None or milli is None:
        return carried
    known = tuple(uuid for pick in pod.picks if pick.resource == FRACTION_RESOURCE for uuid in pick.devices)
    whole = node.allocatable.get(WHOLE_RESOURCE, 0) - used.get(WHOLE_RESOURCE, 0)
    after = carried.with_part(pod.key, milli, fraction.devices, known=known, whole=max(0, whole))
    used[WHOLE_RESOURCE] = used.get(WHOLE_RESOURCE, 0) + after.gpus - carried.gpus
    return after


class Ledger:
    """The accounts of all nodes of a snapshot, by node name, plus volumes promised during this decision."""

    __slots__ = ("accounts", "holdings", "promised_volumes", "searches", "snapshot")

    def __init__(
        self,
        snapshot: Snapshot,
        accounts: dict[str, NodeAccount],
        promised_volumes: dict[str, str] | None = None,
        holdings: Holdings | None = None,
        searches: KeptSearches | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.accounts = accounts
        self.promised_volumes = {} if promised_volumes is None else promised_volumes
        """Volume name to claim key: promised in this decision, not yet written."""
        self.holdings = holdings or Holdings()
        """Follows whichever snapshot it is asked about, so ledgers may share it."""
        self.searches = searches or KeptSearches()
        """Those of the last decision about a ledger of this line."""

    @classmethod
    def build(cls, snapshot: Snapshot, previous: Ledger | None = None) -> Ledger:
        """The ledger of a snapshot; accounts of `previous` are kept where node and pods are the same."""
        known = previous.accounts if previous else {}
        values = part_values(snapshot.mix) if snapshot.mix else ()
        accounts: dict[str, NodeAccount] = {}
        for name, node in snapshot.nodes.items():
            pods = snapshot.pods_by_node.get(name, _NO_PODS)
            account = known.get(name)
            if account is None or not account.is_of(node, pods, values):
                account = account_of(node, pods, values=values)
            accounts[name] = account
        if previous is None:
            return cls(snapshot, accounts)
        return cls(snapshot, accounts, holdings=previous.holdings, searches=previous.searches)

    def fork(self) -> Ledger:
        """A ledger that can change without changing this one."""
        promised = dict(self.promised_volumes)
        return Ledger(self.snapshot, dict(self.accounts), promised, self.holdings, self.searches)

    def place(self, pod: Pod, node: str) -> NodeAccount:
        """Count `pod` as running on `node`, whether or not it fits; the node's new account."""
        account = self.accounts[node] = self.accounts[node].with_pod(pod)
        return account

    def remove(self, node: str, keys: Iterable[str]) -> NodeAccount:
        """Stop counting pods on `node`; the node's new account."""
        account = self.accounts[node] = self.accounts[node].without(keys)
        return account

    def end(self, node: str, keys: Iterable[str]) -> NodeAccount:
        """Count pods on `node` as terminating; the node's new account."""
        account = self.accounts[node] = self.accounts[node].ending(keys)
        return account


_NO_PODS: Mapping[str, Pod] = {}
