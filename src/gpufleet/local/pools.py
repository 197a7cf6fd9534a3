"""The GPU pools of a local fleet: one for each name that a group with GPUs gives as its `pool`, and
for each group whose GPUs are cut as pods need it.

A pool selects its nodes by the labels that they register with, and asks for what the file already gives them,
so the controller finds nothing to change on a new fleet. Where groups of one pool differ (taints, purpose,
sharing, MIG) the pool says nothing about it and each node stays as its group says. Pools of the file that are
not in it any more are deleted; those that people made stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from gpufleet.kube.client import Client
from gpufleet.kube.conventions.labels import POOL_LABEL
from gpufleet.kube.gpupool import Purpose
from gpufleet.kube.kinds import GPU_POOLS
from gpufleet.kube.objects import PartialObject
from gpufleet.local.fleetfile import Fleet, Group
from gpufleet.local.simnodes.machines import FLEET_LABEL

FIELD_MANAGER = "gpufleet"
T = TypeVar("T")


def pools(fleet: Fleet, fleet_name: str) -> list[dict[str, Any]]:
    """The manifests of a fleet's pools, by name."""
    named = sorted(
        {group.pool_label for group in fleet.groups if group.gpus and (group.pool or group.dynamic)}
    )
    members = {name: [group for group in fleet.groups if group.pool_label == name] for name in named}
    return [_pool(name, groups, fleet_name) for name, groups in members.items()]


async def apply_pools(client: Client, fleet: Fleet, fleet_name: str) -> None:
    """Bring the pools of the fleet to what its file says. Raises ApiError."""
    wanted = {one["metadata"]["name"]: one for one in pools(fleet, fleet_name)}
    present = await client.list(GPU_POOLS, labels=f"{FLEET_LABEL}={fleet_name}", type=PartialObject)
    for pool in present.items:
        if pool.metadata.name not in wanted:
            await client.delete(GPU_POOLS, pool.metadata.name, uid=pool.metadata.uid, missing_ok=True)
    for manifest in wanted.values():
        await client.apply(GPU_POOLS, manifest, field_manager=FIELD_MANAGER)


def _pool(name: str, groups: Sequence[Group], fleet_name: str) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "nodeSelector": {"matchLabels": {FLEET_LABEL: fleet_name, POOL_LABEL: name}},
        "disruption": "act",
    }
    purpose = _common(groups, lambda group: group.purpose)
    if purpose in get_args(Purpose):
        spec["purpose"] = purpose
    taints = [
        {"key": taint.key, "value": taint.value, "effect": taint.effect}
        for taint in groups[0].node_taints
        if all(taint in group.node_taints for group in groups)
    ]
    if taints:
        spec["taints"] = taints
    sharing = _common(groups, _sharing)
    if sharing:
        spec["sharing"] = sharing
    mig = _common(groups, _mig)
    if mig:
        spec["mig"] = mig
    return {"metadata": {"name": name, "labels": {FLEET_LABEL: fleet_name}}, "spec": spec}


def _common(groups: Sequence[Group], read: Callable[[Group], T]) -> T | None:
    """What all groups say alike, None when they differ."""
    first = read(groups[0])
    return first if all(read(group) == first for group in groups) else None


def _sharing(group: Group) -> Mapping[str, Any]:
    slicing = group.sharing.time_slicing
    if slicing is None:
        return {}
    return {"mode": "timeSlicing", "replicas": slicing.replicas, "rename": slicing.rename_by_default}


def _mig(group: Group) -> Mapping[str, Any]:
    if group.mig is None:
        return {}
    if group.dynamic:
        return {"dynamic": True, "allowModeSwitch": group.switches_mig}
    return {"layout": group.mig} if isinstance(group.mig, str) else {"profiles": list(group.mig)}
