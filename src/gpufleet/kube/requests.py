"""What a pod asks for, as one vector: the rule by which Kubernetes adds up containers.

Containers run together and are summed; init containers run one after the other, each beside the sidecars
(init containers with restartPolicy Always) started before it, so the largest of them counts. Pod-level
resources, where given, replace the sums of cpu, memory and huge pages. Overhead comes on top. While a resize
is under way the larger of what was asked and what the kubelet has allocated counts, unless the kubelet called
the resize infeasible.
Source: k8s.io/component-helpers/resource, KEP-753, KEP-1287, KEP-2837.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gpufleet.fleet.quantities import resource_amount
from gpufleet.kube.objects import Container, ContainerStatus, Pod

Amounts = dict[str, int]


def effective_requests(pod: Pod) -> tuple[tuple[str, int], ...]:
    """The pod's request by resource, sorted; amounts as in `fleet.quantities`, and `pods`: 1. Zeros are left
    out.
    """
    infeasible = any(
        c.type == "PodResizePending" and c.status == "True" and c.reason == "Infeasible"
        for c in pod.status.conditions
    )
    statuses = {s.name: s for s in (*pod.status.container_statuses, *pod.status.init_container_statuses)}

    def amounts(container: Container) -> Amounts:
        return _container_amounts(container, statuses.get(container.name), infeasible=infeasible)

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
    total = _largest(_total((running, sidecars)), peak)
    if pod.spec.resources is not None:
        total.update(_pod_level(pod, total))
    total = _total((total, _amounts(pod.spec.overhead)))
    total["pods"] = 1
    return tuple(sorted((resource, amount) for resource, amount in total.items() if amount))


def _container_amounts(container: Container, status: ContainerStatus | None, *, infeasible: bool) -> Amounts:
    wanted = container.resources.requests
    if not wanted and not container.resources.limits:
        return {}
    # The API server has already defaulted requests from limits; extended resources may stand in limits alone.
    amounts = _amounts({**{k: v for k, v in container.resources.limits.items() if "/" in k}, **wanted})
    if status is None or not (status.allocated_resources or status.resources):
        return amounts
    actual = _amounts(status.resources.requests) if status.resources else {}
    granted = _largest(_amounts(status.allocated_resources), actual)
    return {**amounts, **granted} if infeasible else _largest(amounts, granted)


def _pod_level(pod: Pod, summed: Amounts) -> Amounts:
    assert pod.spec.resources is not None
    requests = {**_defaulted(pod.spec.resources.limits, summed), **pod.spec.resources.requests}
    return {
        resource: amount
        for resource, amount in _amounts(requests).items()
        if resource in ("cpu", "memory") or resource.startswith("hugepages-")
    }


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
