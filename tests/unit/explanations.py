"""What `why` says of a pod in a small fleet: `why(fleet(node("a"), pod("p")), "p")`."""

from __future__ import annotations

from collections import Counter

import msgspec

from gpufleet.fleet.nodes import Node
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy
from gpufleet.scheduling.explain import Explanation, explain


def why(snapshot: Snapshot, name: str) -> Explanation:
    """The explanation of a pod of the namespace `default`."""
    found = explain(snapshot, f"default/{name}", Policy())
    assert found is not None
    return found


def messages(snapshot: Snapshot, name: str = "p") -> dict[str, str]:
    """Kind and words of each change that is offered to a pod."""
    return {change.kind: change.message for change in why(snapshot, name).changes}


def fleet(*things: Node | Pod, **rest: object) -> Snapshot:
    """A snapshot of these nodes and pods."""
    nodes = tuple(thing for thing in things if isinstance(thing, Node))
    return snapshot_of(nodes, tuple(thing for thing in things if isinstance(thing, Pod)), **rest)


def mended(old: Node) -> Node:
    """The node once its devices are healthy again, and open to pods."""
    devices = Counter(old.allocatable) + Counter(old.unhealthy)
    return msgspec.structs.replace(old, ready=True, unschedulable=False, allocatable=devices, unhealthy={})
