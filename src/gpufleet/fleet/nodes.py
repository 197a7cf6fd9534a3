"""Nodes as a scheduler sees them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.fleet.cuts import MigGPU
from gpufleet.fleet.selectors import Taint


class Node(msgspec.Struct, frozen=True):
    """One node. `allocatable` is what pods may use (millicores, bytes, counts).

    `unread_pods` names pods there that could not be read: what they hold is unknown, so nobody else is placed
    there. Where a `GPUNode` exists, its healthy devices have already replaced the kubelet's count of GPU
    resources, because the kubelet reports a sick or a returned GPU up to ten seconds late. `unhealthy` counts
    the devices that the node has beside those, by GPU resource, and that no new pod may use; `sick` are the
    UUIDs of such GPUs. `carrying` are the GPUs that are kept for fractions (they count in `allocatable`),
    `may_carry` says whether its agent can keep any. `gpus` are those that the scheduler may cut, `may_switch`
    says whether that goes for their MIG mode, too; what is asked to go is no longer in `allocatable`.
    """

    name: str
    labels: Mapping[str, str]
    allocatable: Mapping[str, int]
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    ready: bool = True
    unread_pods: tuple[str, ...] = ()
    unhealthy: Mapping[str, int] = {}
    gpus: tuple[MigGPU, ...] = ()
    may_switch: bool = False
    sick: tuple[str, ...] = ()
    carrying: tuple[str, ...] = ()
    may_carry: bool = True
