"""Plans: what a scheduling decision wants done, as data, each action with the reasons that led to it."""

from __future__ import annotations

import msgspec

from gpufleet.fleet.devices import DevicePick
from gpufleet.fleet.mig import Placement
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason


class Bind(msgspec.Struct, frozen=True):
    """Bind a pod to a node, where its containers should get the devices of `picks`; without any, the node
    chooses.
    """

    pod: Pod
    node: str
    reasons: tuple[Reason, ...] = ()
    picks: tuple[DevicePick, ...] = ()


class SelectNode(msgspec.Struct, frozen=True):
    """Tell a claim's provisioner which node will use it (volume.kubernetes.io/selected-node); the pod binds
    later.
    """

    claim: str
    node: str
    pod: Pod
    reasons: tuple[Reason, ...] = ()


class BindVolume(msgspec.Struct, frozen=True):
    """Reserve an existing volume for a claim (spec.claimRef); the volume controller completes the binding."""

    claim: str
    volume: str
    pod: Pod
    reasons: tuple[Reason, ...] = ()


class Evict(msgspec.Struct, frozen=True):
    """Evict a running pod so that `beneficiary` (namespace/name) can run on `node`."""

    pod: Pod
    node: str
    beneficiary: str
    reasons: tuple[Reason, ...] = ()


class Nominate(msgspec.Struct, frozen=True):
    """Record (or clear, with an empty node) on which node room is being made for a pod."""

    pod: Pod
    node: str
    reasons: tuple[Reason, ...] = ()


class Cut(msgspec.Struct, frozen=True):
    """Cut a GPU (uuid) of a node so that it has an instance of `profile` at the memory slice `start`, for
    `pod`. `layout` are all its instances afterwards; None: MIG mode off, and `profile` is empty.
    """

    pod: Pod
    node: str
    gpu: str
    profile: str
    start: int
    layout: tuple[Placement, ...] | None
    reasons: tuple[Reason, ...] = ()


class Merge(msgspec.Struct, frozen=True):
    """Make a GPU (uuid) of a node whole again: its instances go and MIG mode is switched off."""

    node: str
    gpu: str
    reasons: tuple[Reason, ...] = ()


class Unschedulable(msgspec.Struct, frozen=True):
    """Report why a pod is not bound. `helped_by_capacity` says whether new nodes could help."""

    pod: Pod
    reasons: tuple[Reason, ...]
    helped_by_capacity: bool = True


Action = Bind | SelectNode | BindVolume | Evict | Nominate | Cut | Unschedulable


class Plan(msgspec.Struct, frozen=True):
    """One decision: a list of actions, in the order in which they were taken."""

    actions: tuple[Action, ...] = ()
