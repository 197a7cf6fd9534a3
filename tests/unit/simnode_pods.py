"""Pods for the tests of simulated nodes, written as people write manifests."""

from __future__ import annotations

from typing import Any

import msgspec

from gpufleet.kube.objects import Pod, PodStatus
from gpufleet.local.simnodes.podstate import PodRun
from gpufleet.local.simnodes.podstatus import pod_status


def container(name: str = "main", gpus: int = 0, **rest: Any) -> dict[str, Any]:
    """A container of a manifest."""
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    return {"name": name, "image": "registry.invalid/image:1", "resources": resources, **rest}


def pod(
    name: str = "p",
    *,
    containers: list[dict[str, Any]] | None = None,
    inits: list[dict[str, Any]] | None = None,
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    status: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    **spec: Any,
) -> Pod:
    """A pod bound to node n-0."""
    body = {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "generation": 1,
            "labels": labels or {},
            "annotations": annotations or {},
            **(metadata or {}),
        },
        "spec": {
            "nodeName": "n-0",
            "containers": containers or [container()],
            "initContainers": inits or [],
            **spec,
        },
        "status": status or {},
    }
    return msgspec.convert(body, Pod)


def as_written(run: PodRun, now: float) -> Pod:
    """The pod's object after our status was written to it."""
    body = _without_nulls(pod_status(run, {}, now))
    return msgspec.structs.replace(run.pod, status=msgspec.convert(body, PodStatus))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
