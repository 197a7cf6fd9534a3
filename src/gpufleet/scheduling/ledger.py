"""The ledger: what each node has, what is used on it, and by whom.

An account is a value; placing a pod makes a new account for one node, so a fork of the ledger is a copy of
one mapping and a trial costs nothing to abandon. The ledger is only a cache of the snapshot: `Ledger.build`
with a previous ledger recomputes the nodes whose pods changed and equals a rebuild (test_ledger guards it).
Terminating pods count as used until they are gone, as the kubelet counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import HostPort, Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.holdings import Holdings


class NodeAccount(msgspec.Struct, frozen=True):
    """One node, its pods by key, and the sums that filters and scores read."""

    node: Node
    pods: Mapping[str, Pod]
    used: Mapping[str, int]
    ports: tuple[HostPort, ...]
    anti_affine: tuple[Pod, ...]

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name

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
        )

    def without(self, keys: Iterable[str]) -> NodeAccount:
        """This account without the named pods; names that are not here are ignored."""
        gone = set(keys)
        return account_of(self.node, {key: pod for key, pod in self.pods.items() if key not in gone})

    def ending(self, keys: Iterable[str]) -> NodeAccount:
        """This account with the named pods terminating: they hold what they hold until they are gone."""
        doomed = set(keys)
        pods = {
            key: msgspec.structs.replace(pod, terminating=True) if key in doomed else pod
            for key, pod in self.pods.items()
        }
        return account_of(self.node, pods)


def account_of(node: Node, pods: Mapping[str, Pod]) -> NodeAccount:
    """The account of a node that runs `pods`, computed from nothing else."""
    used: dict[str, int] = {}
    ports: list[HostPort] = []
    for pod in pods.values():
        for resource, amount in pod.shape.requests:
            used[resource] = used.get(resource, 0) + amount
        ports.extend(pod.shape.host_ports)
    anti_affine = tuple(pod for pod in pods.values() if pod.shape.anti_affinity)
    return NodeAccount(node, pods, used, tuple(ports), anti_affine)


class Ledger:
    """The accounts of all nodes of a snapshot, by node name, plus volumes promised during this decision."""

    __slots__ = ("accounts", "holdings", "promised_volumes", "snapshot")

    def __init__(
        self,
        snapshot: Snapshot,
        accounts: dict[str, NodeAccount],
        promised_volumes: dict[str, str] | None = None,
        holdings: Holdings | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.accounts = accounts
        self.promised_volumes = {} if promised_volumes is None else promised_volumes
        """Volume name to claim key: promised in this decision, not yet written."""
        self.holdings = holdings or Holdings()
        """Follows whichever snapshot it is asked about, so ledgers may share it."""

    @classmethod
    def build(cls, snapshot: Snapshot, previous: Ledger | None = None) -> Ledger:
        """The ledger of a snapshot; accounts of `previous` are kept where node and pods are the same."""
        known = previous.accounts if previous else {}
        accounts: dict[str, NodeAccount] = {}
        for name, node in snapshot.nodes.items():
            pods = snapshot.pods_by_node.get(name, _NO_PODS)
            account = known.get(name)
            if account is None or account.node is not node or account.pods is not pods:
                account = account_of(node, pods)
            accounts[name] = account
        return cls(snapshot, accounts, holdings=previous.holdings if previous else None)

    def fork(self) -> Ledger:
        """A ledger that can change without changing this one."""
        return Ledger(self.snapshot, dict(self.accounts), dict(self.promised_volumes), self.holdings)

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
