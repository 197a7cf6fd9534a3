"""Who holds which device on this node: the kubelet's account, with the pods' uids and without its gaps.

The kubelet lists what it has given, by namespace and name of a pod. It knows nothing for a moment after its
start and lists no pod that it has yet to look at, while the containers run on. So what was on record stays on
record as long as the pod lives and the kubelet says nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.fleet.devices import device_of
from gpufleet.kube.gpunode import GPUAllocation
from gpufleet.kube.kubelet.pod_resources import PodDevices


class BoundPod(msgspec.Struct, frozen=True):
    """A pod of this node; `over` once none of its containers runs or will run again."""

    namespace: str
    name: str
    uid: str
    over: bool = False


def allocations(
    listed: Iterable[PodDevices],
    pods: Iterable[BoundPod],
    before: Iterable[GPUAllocation],
    resources: frozenset[str],
) -> tuple[GPUAllocation, ...]:
    """What each container holds of `resources` (names), ordered by pod, container and resource.

    A pod that is listed and not known by the API server any more, or not yet, is left out.
    """
    living = {(pod.namespace, pod.name): pod.uid for pod in pods if not pod.over}
    accounts = {(pod.namespace, pod.name): pod for pod in listed}
    found = [
        allocation
        for key, account in accounts.items()
        if key in living
        for allocation in _allocations(account, living[key], resources)
    ]
    said = {living[key] for key, account in accounts.items() if key in living and _says(account)}
    alive = set(living.values())
    found += [one for one in before if one.pod_uid in alive and one.pod_uid not in said]
    return tuple(sorted(found, key=lambda one: (one.namespace, one.pod, one.container, one.resource)))


def _says(account: PodDevices) -> bool:
    return any(container.devices for container in account.containers)


def _allocations(account: PodDevices, uid: str, resources: frozenset[str]) -> Iterable[GPUAllocation]:
    for container in account.containers:
        for held in container.devices:
            if held.resource in resources and held.ids:
                devices = tuple(dict.fromkeys(device_of(one) for one in held.ids))
                yield GPUAllocation(
                    namespace=account.namespace,
                    pod=account.name,
                    pod_uid=uid,
                    container=container.name,
                    resource=held.resource,
                    devices=devices,
                    ids=() if held.ids == devices else held.ids,
                )


def holders(allocated: Iterable[GPUAllocation]) -> Mapping[str, tuple[GPUAllocation, ...]]:
    """Who holds each GPU or MIG instance, by its UUID; several where it is shared."""
    found: dict[str, tuple[GPUAllocation, ...]] = {}
    for one in allocated:
        for device in one.devices:
            found[device] = (*found.get(device, ()), one)
    return found
