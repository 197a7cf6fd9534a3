"""Volumes: on which nodes the claims of a pod can be used, and what must be written before they are.

A bound claim goes where its volume can be reached (node affinity, zone labels). An unbound claim of a class
that waits for its first consumer goes where a volume exists that fits (the smallest one is taken) or where
one can be provisioned; once a node is selected for it, it goes only there. A ReadWriteOncePod claim admits
one pod. A ReadWriteOnce volume of a CSI driver that attaches its volumes admits one node: kube-scheduler
leaves that to the attach step, where the second pod would hang for as long as the first one runs, so gpufleet
blocks the node (VolumeInUse). Nothing keeps other ReadWriteOnce volumes (host paths, NFS) to one node, and
gpufleet does not either. Three more differences keep a pod from waiting for what cannot come: an unbound
claim follows a pod that was placed with it, a claim for which a volume is reserved goes only where that
volume can be reached, and capacity that has been used up no longer matters once a node is selected.
Source: k8s.io/kubernetes 1.37 pkg/scheduler/framework/plugins/{volumebinding,volumezone,volumerestrictions}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import BindVolume, SelectNode
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.fleet.volumes import Claim, Volume
from gpufleet.scheduling.ledger import Ledger, NodeAccount
from gpufleet.scheduling.placement import Block, Check, Prepared
from gpufleet.scheduling.provisioning import Provisioning, Stock, out_of_reach

_Choice = tuple[Claim, Volume | None]
"""A claim and the existing volume that it gets, or None where one is provisioned for it."""


def claim_keys(pod: Pod) -> tuple[str, ...]:
    """`namespace/name` of the claims of a pod."""
    names = pod.shape.claims
    return tuple(f"{pod.namespace}/{name}" for name in names) if names else ()


def volume_problem(pod: Pod, snapshot: Snapshot) -> Block | None:
    """Why the pod's claims cannot be used from any node, or None."""
    for key in claim_keys(pod):
        claim = snapshot.claims.get(key)
        block = _missing(key) if claim is None else _problem(claim, snapshot)
        if block is not None:
            return block
    return None


def volume_actions(pod: Pod, node: str, ledger: Ledger) -> tuple[SelectNode | BindVolume, ...]:
    """What must be written before the pod can bind on the node.

    Call it when the pod is placed and before the next pod is: the volumes that it promises are noted in the
    ledger. What was written by an earlier decision is not named again, so a pod without actions can bind only
    if all its claims are bound. A claim that can get no volume there, which the filters would have said, is
    left to the next decision.
    """
    unbound = _unbound(pod, ledger.snapshot)
    if not unbound:
        return ()
    chosen, _ = _VolumeNodes(pod, ledger, unbound).choose(ledger.accounts[node].node)
    actions: list[SelectNode | BindVolume] = []
    for claim, volume in chosen:
        if volume is not None:
            ledger.promised_volumes[volume.name] = claim.key
            if not volume.claim_uid:
                actions.append(BindVolume(claim.key, volume.name, pod))
        elif not claim.selected_node:
            actions.append(SelectNode(claim.key, node, pod))
    return tuple(actions)


def volume_waits(
    pod: Pod, node: str, snapshot: Snapshot, actions: Iterable[SelectNode | BindVolume]
) -> tuple[Reason, ...]:
    """For which volumes the pod waits once its node is chosen; `actions` are those of its placement."""
    reserved = {action.claim: action.volume for action in actions if isinstance(action, BindVolume)}
    return tuple(
        Reason("WaitingForVolume", _waits_for(claim, node, snapshot, reserved), claim.key)
        for claim in _unbound(pod, snapshot)
    )


def prepare_use(pod: Pod, ledger: Ledger) -> Prepared | None:
    """The filter of claims that one pod or one node may use at a time."""
    snapshot = ledger.snapshot
    claims = [claim for key in claim_keys(pod) if (claim := snapshot.claims.get(key)) is not None]
    one_pod = {claim.key for claim in claims if "ReadWriteOncePod" in claim.access_modes}
    one_node = {claim.key for claim in claims if _attaches_once(claim, snapshot)}
    return _VolumeUse(pod, ledger, one_pod, one_node) if one_pod or one_node else None


def prepare_reach(pod: Pod, ledger: Ledger) -> Check | None:
    """The filter of nodes from which the volumes of bound claims can be reached."""
    tied = [(v, out_of_reach(v)) for v in _bound_volumes(pod, ledger.snapshot) if _tied(v)]
    if not tied:
        return None
    return lambda account: next((block for v, block in tied if not _reaches(v, account.node)), None)


def prepare_nodes(pod: Pod, ledger: Ledger) -> Prepared | None:
    """The filter of nodes where claims that are not bound yet can get their volumes."""
    unbound = _unbound(pod, ledger.snapshot)
    return _VolumeNodes(pod, ledger, unbound) if unbound else None


class _VolumeUse:
    """Claims of one pod that others may hold, prepared against one ledger."""

    __slots__ = ("_one_node", "_one_pod", "_pod", "_users")

    def __init__(self, pod: Pod, ledger: Ledger, one_pod: set[str], one_node: set[str]) -> None:
        self._pod = pod
        self._one_pod = one_pod
        self._one_node = one_node
        self._users: dict[str, dict[str, str]] = {}
        for node, other in _other_pods(pod, ledger):
            self._count(other, node)

    def __call__(self, account: NodeAccount) -> Block | None:
        """Why a claim cannot be used from the node now, or None."""
        for claim, users in self._users.items():
            if claim in self._one_pod:
                return Block("VolumeInUse", f"claim {claim} is in use by {min(users.values())}")
            elsewhere = [node for node in users if node != account.name]
            if elsewhere:
                return Block("VolumeInUse", f"claim {claim} is in use on {min(users)}")
        return None

    def placed(self, pod: Pod, account: NodeAccount) -> None:
        """Take a pod into account that was placed."""
        if pod.key != self._pod.key:
            self._count(pod, account.name)

    def _count(self, other: Pod, node: str) -> None:
        for claim in claim_keys(other):
            if claim in self._one_node or claim in self._one_pod:
                users = self._users.setdefault(claim, {})
                users[node] = min(other.key, users.get(node, other.key))


class _VolumeNodes:
    """Where the unbound claims of one pod can get volumes, prepared against one ledger.

    Promised volumes are read from the ledger at every call, as they change while the decision goes on.
    """

    __slots__ = ("_choices", "_ledger", "_pod", "_users")

    def __init__(self, pod: Pod, ledger: Ledger, unbound: list[Claim]) -> None:
        self._pod = pod
        self._ledger = ledger
        snapshot = ledger.snapshot
        self._choices = [(c, Stock(c, snapshot), Provisioning(c, snapshot)) for c in unbound]
        self._users: dict[str, set[str]] = {claim.key: set() for claim in unbound}
        for node, other in _other_pods(pod, ledger):
            self._count(other, node)

    def __call__(self, account: NodeAccount) -> Block | None:
        """Why a claim can get no volume on the node, or None."""
        return self.choose(account.node)[1]

    def choose(self, node: Node) -> tuple[list[_Choice], Block | None]:
        """What each unbound claim gets on a node, up to the first that can get nothing there."""
        chosen: list[_Choice] = []
        taken: set[str] = set()
        for claim, stock, provisioning in self._choices:
            block = self._settled_elsewhere(claim, node)
            if block is not None:
                return chosen, block
            volume = None if claim.selected_node else stock.best(node, self._ledger.promised_volumes, taken)
            if isinstance(volume, Block):
                return chosen, volume
            if volume is not None:
                taken.add(volume.name)
            elif (block := provisioning.block(node)) is not None:
                return chosen, block
            chosen.append((claim, volume))
        return chosen, None

    def placed(self, pod: Pod, account: NodeAccount) -> None:
        """Take a pod into account that was placed."""
        if pod.key != self._pod.key:
            self._count(pod, account.name)

    def _settled_elsewhere(self, claim: Claim, node: Node) -> Block | None:
        users = self._users[claim.key]
        if (claim.selected_node or node.name) == node.name and users <= {node.name}:
            return None
        there = claim.selected_node or min(users)
        return Block("VolumeNodeConflict", f"claim {claim.key} is being bound for {there}")

    def _count(self, other: Pod, node: str) -> None:
        if other.shape.claims:
            for claim in claim_keys(other):
                if claim in self._users:
                    self._users[claim].add(node)


def _waits_for(claim: Claim, node: str, snapshot: Snapshot, reserved: Mapping[str, str]) -> str:
    volume = reserved.get(claim.key) or next(
        (volume.name for volume in snapshot.volumes.values() if volume.claim == claim.key), ""
    )
    if volume:
        return f"claim {claim.key} waits to be bound to volume {volume}, for {node}"
    storage_class = snapshot.storage_classes.get(claim.storage_class or "")
    provisioner = storage_class.provisioner if storage_class is not None else "none"
    return (
        f"claim {claim.key} waits for its volume on {node}: provisioner {provisioner} of storage class "
        f"{claim.storage_class} has not made it yet"
    )


def _missing(key: str) -> Block:
    return Block("ClaimNotFound", f"claim {key} does not exist")


def _problem(claim: Claim, snapshot: Snapshot) -> Block | None:
    if claim.phase == "Lost":
        return Block("ClaimLost", f"claim {claim.key} lost its volume {claim.volume}".rstrip())
    if claim.terminating:
        return Block("ClaimTerminating", f"claim {claim.key} is being deleted")
    if claim.phase == "Bound":
        if claim.volume in snapshot.volumes:
            return None
        return Block(
            "ClaimLost", f"claim {claim.key} is bound to volume {claim.volume}, which does not exist"
        )
    if claim.volume:
        return Block("ClaimUnbound", f"claim {claim.key} waits to be bound to volume {claim.volume}")
    if not claim.storage_class:
        return Block("ClaimUnbound", f"claim {claim.key} is not bound and names no storage class")
    storage_class = snapshot.storage_classes.get(claim.storage_class)
    if storage_class is None:
        detail = f"claim {claim.key} names storage class {claim.storage_class}, which does not exist"
        return Block("StorageClassNotFound", detail)
    if not storage_class.waits:
        return Block(
            "ClaimUnbound", f"claim {claim.key} is not bound yet by storage class {storage_class.name}"
        )
    return None


def _unbound(pod: Pod, snapshot: Snapshot) -> list[Claim]:
    """The claims that this pod is the first to use; the smallest chooses first, as in kube-scheduler."""
    claims = (snapshot.claims.get(key) for key in dict.fromkeys(claim_keys(pod)))
    waiting = [
        claim for claim in claims if claim is not None and claim.phase == "Pending" and not claim.volume
    ]
    return sorted(waiting, key=lambda claim: (claim.request, claim.key))


def _bound_volumes(pod: Pod, snapshot: Snapshot) -> Iterator[Volume]:
    for key in claim_keys(pod):
        claim = snapshot.claims.get(key)
        volume = snapshot.volumes.get(claim.volume) if claim is not None and claim.volume else None
        if volume is not None:
            yield volume


def _attaches_once(claim: Claim, snapshot: Snapshot) -> bool:
    """Whether the claim's volume is attached to one node at a time; what the volume can do counts, not what
    the claim asks for.
    """
    volume = snapshot.volumes.get(claim.volume)
    if volume is None or not volume.csi_driver or not volume.access_modes:
        return False
    driver = snapshot.csi_drivers.get(volume.csi_driver)
    if driver is not None and not driver.attaches:
        return False
    return not {"ReadWriteMany", "ReadOnlyMany"} & set(volume.access_modes)


def _other_pods(pod: Pod, ledger: Ledger) -> Iterator[tuple[str, Pod]]:
    """Every other pod with claims and its node, also on nodes that are gone: their volumes may still be
    attached.
    """
    for name, account in ledger.accounts.items():
        for other in _with_claims(account.pods.values(), pod):
            yield name, other
    for name, pods in ledger.snapshot.pods_by_node.items():
        if name not in ledger.accounts:
            for other in _with_claims(pods.values(), pod):
                yield name, other


def _with_claims(pods: Iterable[Pod], but: Pod) -> Iterator[Pod]:
    return (pod for pod in pods if pod.shape.claims and pod.key != but.key)


_ZONE_LABELS = {
    "topology.kubernetes.io/zone": "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region": "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone": "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region": "topology.kubernetes.io/region",
}
"""Labels of a volume that tie it to a place, and the label of a node that may stand for the old names."""


def _tied(volume: Volume) -> bool:
    return volume.node_affinity is not None or not _ZONE_LABELS.keys().isdisjoint(volume.labels)


def _reaches(volume: Volume, node: Node) -> bool:
    if volume.node_affinity is not None and not volume.node_affinity.matches(node.name, node.labels):
        return False
    if _ZONE_LABELS.keys().isdisjoint(node.labels):
        return True
    for key, current in _ZONE_LABELS.items():
        zones = volume.labels.get(key)
        if zones is not None and node.labels.get(key, node.labels.get(current)) not in zones.split("__"):
            return False
    return True
