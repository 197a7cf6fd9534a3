"""What a pod asks for, as one vector: the rule by which Kubernetes adds up containers.

Containers run together and are summed; init containers run one after the other, each beside the sidecars
(init containers with restartPolicy Always) started before it, so the largest of them counts. Pod-level
resources, where given, replace the sums of cpu, memory and huge pages. Overhead comes on top.
While a resize is under way there are three such sums: of what was asked for, of what the kubelet has
allocated, and of what it has carried out. The largest of each resource counts, without what was asked for if
the kubelet called that infeasible.
Source: k8s.io/component-helpers/resource 1.37, KEP-753, KEP-1287, KEP-2837, KEP-5419.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from gpufleet.fleet.devices import DeviceClaim
from gpufleet.fleet.pods import is_gpu_resource
from gpufleet.fleet.quantities import resource_amount
from gpufleet.kube.objects import Container, ContainerStatus, Pod

Amounts = dict[str, int]

_View = Callable[[Container, ContainerStatus | None], Amounts]
"""What a container counts for, from one of the three sides."""


def effective_requests(pod: Pod) -> tuple[tuple[str, int], ...]:
    """The pod's request by resource, sorted; amounts as in `fleet.quantities`, and `pods`: 1. Zeros are left
    out.
    """
    infeasible = _infeasible(pod)
    total = _containers(pod, infeasible=infeasible)
    if pod.spec.resources is not None:
        total.update(_pod_level(pod, total, infeasible=infeasible))
    total = _total((total, _amounts(pod.spec.overhead)))
    total["pods"] = 1
    return tuple(sorted((resource, amount) for resource, amount in total.items() if amount))


def device_claims(pod: Pod) -> tuple[DeviceClaim, ...]:
    """What the pod's containers claim from GPUs, in the order in which a kubelet allocates."""
    claims = []
    for container in (*pod.spec.init_containers, *pod.spec.containers):
        reusable = container in pod.spec.init_containers and container.restart_policy != "Always"
        for resource, quantity in sorted(_gpus_of(container).items()):
            amount = resource_amount(resource, quantity)
            if amount:
                claims.append(DeviceClaim(container.name, resource, amount, reusable))
    return tuple(claims)


def _gpus_of(container: Container) -> Mapping[str, str]:
    # The API server has defaulted requests from limits.
    asked = {**container.resources.limits, **container.resources.requests}
    return {resource: quantity for resource, quantity in asked.items() if is_gpu_resource(resource)}


def _infeasible(pod: Pod) -> bool:
    pending = (c for c in pod.status.conditions if c.type == "PodResizePending")
    return any(condition.reason == "Infeasible" for condition in pending)


def _containers(pod: Pod, *, infeasible: bool) -> Amounts:
    """The sum over containers, as the pod's status has it or as the containers' statuses have it."""
    statuses = {s.name: s for s in (*pod.status.container_statuses, *pod.status.init_container_statuses)}
    if not any(status.allocated_resources or status.resources for status in statuses.values()):
        statuses = {}
    whole = pod.status.resources
    if pod.status.allocated_resources and whole is not None and whole.requests:
        granted = _largest(_amounts(pod.status.allocated_resources), _amounts(whole.requests))
    elif statuses or infeasible:

        def spec(container: Container) -> Amounts:
            return {} if infeasible else _asked(container)

        def allocated(container: Container, status: ContainerStatus | None) -> Amounts:
            known = status is not None and status.allocated_resources
            return _amounts(known) if known else spec(container)

        def carried_out(container: Container, status: ContainerStatus | None) -> Amounts:
            known = status is not None and status.resources is not None and status.resources.requests
            return _amounts(known) if known else allocated(container, status)

        granted = _largest(_sum(pod, statuses, allocated), _sum(pod, statuses, carried_out))
    else:
        granted = {}
    return granted if infeasible else _largest(_sum(pod, {}, lambda container, _: _asked(container)), granted)


def _sum(pod: Pod, statuses: Mapping[str, ContainerStatus], view: _View) -> Amounts:
    def amounts(container: Container) -> Amounts:
        return view(container, statuses.get(container.name))

    running = _total(amounts(container) for container in pod.spec.containers)
    sidecars: Amounts = {}
    peak: Amounts = {}
    for container in pod.spec.init_containers:
        own = amounts(container)
        if container.restart_policy == "Always":
            sidecars = _total((sidecars, own))
            peak = _largest(peak, sidecars)
        else:
            peak = _largest(peak, _total((sidecars, own)))
    return _largest(_total((running, sidecars)), peak)


def _asked(container: Container) -> Amounts:
    # The API server has already defaulted requests from limits; extended resources may stand in limits alone.
    limits = {k: v for k, v in container.resources.limits.items() if "/" in k}
    return _amounts({**limits, **container.resources.requests})


def _pod_level(pod: Pod, summed: Amounts, *, infeasible: bool) -> Amounts:
    assert pod.spec.resources is not None
    asked = _amounts({**_defaulted(pod.spec.resources.limits, summed), **pod.spec.resources.requests})
    if not any(map(_at_pod_level, asked)):
        return {}
    if pod.status.resources is not None:
        granted = _largest(_amounts(pod.status.resources.requests), _amounts(pod.status.allocated_resources))
        asked = granted if infeasible else _largest(asked, granted)
    return {resource: amount for resource, amount in asked.items() if _at_pod_level(resource)}


def _at_pod_level(resource: str) -> bool:
    return resource in ("cpu", "memory") or resource.startswith("hugepages-")


def _defaulted(limits: Mapping[str, str], summed: Amounts) -> dict[str, str]:
    """Pod-level limits stand for requests where no container asks for the resource."""
    return {resource: text for resource, text in limits.items() if not summed.get(resource)}


def _amounts(quantities: Mapping[str, str]) -> Amounts:
    return {resource: resource_amount(resource, text) for resource, text in quantities.items()}


def _total(parts: Iterable[Mapping[str, int]]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for resource, amount in part.items():
            total[resource] = total.get(resource, 0) + amount
    return total


def _largest(left: Mapping[str, int], right: Mapping[str, int]) -> Amounts:
    largest = dict(left)
    for resource, amount in right.items():
        largest[resource] = max(largest.get(resource, 0), amount)
    return largest
