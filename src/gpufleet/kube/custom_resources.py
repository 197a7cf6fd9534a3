"""The custom resources of gpufleet: the list that `up`, `install` and the Helm chart share."""

from __future__ import annotations

from typing import Any

from gpufleet.kube.crds import crd_manifest
from gpufleet.kube.gpunode import GPU_NODE
from gpufleet.kube.gpupool import GPU_POOL
from gpufleet.kube.queue import QUEUE

CUSTOM_RESOURCES = (GPU_NODE, GPU_POOL, QUEUE)


def custom_resources() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions of gpufleet."""
    return [crd_manifest(resource) for resource in CUSTOM_RESOURCES]
