"""Pods that use claims on three nodes in two zones: where they may run, and which volumes they get there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.unit.fleets import ledger, node, pod, storage, waiting_class

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import BindVolume
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.volumes import Claim, StorageClass, Volume
from gpufleet.scheduling.filters import FILTERS
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.placement import Block
from gpufleet.scheduling.provisioning import NO_PROVISIONER
from gpufleet.scheduling.volumes import volume_actions

NODES = [node("a", zone="x"), node("b", zone="x"), node("c", zone="y")]
LOCAL = waiting_class(provisioner=NO_PROVISIONER)


def user(name: str = "new", *claims: str, where: str = "", namespace: str = "default") -> Pod:
    """A pod that uses claims, `data` where none is named."""
    return pod(name, claims=claims or ("data",), node=where, namespace=namespace)


def blocks(incoming: Pod, fleet: Ledger) -> dict[str, Block | None]:
    """What keeps a pod from each node, or None."""
    checks = [rule.prepare(incoming, fleet) for rule in FILTERS]
    return {
        name: next((b for check in checks if check is not None and (b := check(account))), None)
        for name, account in fleet.accounts.items()
    }


def open_nodes(incoming: Pod, fleet: Ledger) -> str:
    """The names of the nodes where a pod may run, in one word."""
    return "".join(name for name, block in blocks(incoming, fleet).items() if block is None)


def fleet_of(
    claims: Iterable[Claim],
    volumes: Iterable[Volume] = (),
    classes: Iterable[StorageClass] = (),
    pods: Iterable[Pod] = (),
    nodes: Iterable[Node] = NODES,
    **rest: Any,
) -> Ledger:
    """The ledger of a fleet with claims, by default on the three nodes."""
    return ledger(nodes, pods, **storage(claims=claims, volumes=volumes, classes=classes), **rest)


def bound_to(incoming: Pod, fleet: Ledger, name: str) -> dict[str, str]:
    """Claims (without namespace) and the volumes they get on a node, or `new` where one is provisioned."""
    return {
        action.claim.removeprefix("default/"): action.volume if isinstance(action, BindVolume) else "new"
        for action in volume_actions(incoming, name, fleet)
    }
