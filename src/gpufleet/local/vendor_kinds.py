"""Kinds of other gang schedulers and queues, so that a local fleet takes manifests written for them.

A definition takes any fields and is installed only where nobody has installed the kind: one that is there,
without our mark, is its vendor's and stays as it is. Kinds that need a controller to make pods (JobSet,
RayCluster, a Job of Volcano) are left out: without it nothing would come of such a manifest, and the error
that the kind is unknown says so. `kubectl delete crd -l gpufleet.dev/permissive` makes room for real ones.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from gpufleet.kube import crds
from gpufleet.kube.client import Client
from gpufleet.kube.conventions import coscheduling, kai, volcano
from gpufleet.kube.errors import ApiError
from gpufleet.kube.kinds import CRDS, Kind

MARK = "gpufleet.dev/permissive"
"""The label of the definitions that are ours."""


class VendorKind(msgspec.Struct, frozen=True):
    """A kind of somebody else; `older` versions are served beside the one of the kind."""

    kind: Kind
    older: tuple[str, ...] = ()


def _kueue(plural: str, kind: str, *, namespaced: bool = False) -> VendorKind:
    return VendorKind(Kind("kueue.x-k8s.io", "v1beta2", plural, kind, namespaced), ("v1beta1",))


VENDOR_KINDS = (
    VendorKind(kai.POD_GROUPS),
    VendorKind(Kind("scheduling.run.ai", "v2", "queues", "Queue", namespaced=False)),
    VendorKind(Kind("kai.scheduler", "v1alpha1", "topologies", "Topology", namespaced=False)),
    VendorKind(volcano.POD_GROUPS),
    VendorKind(Kind("scheduling.volcano.sh", "v1beta1", "queues", "Queue", namespaced=False)),
    VendorKind(Kind("topology.volcano.sh", "v1alpha1", "hypernodes", "HyperNode", namespaced=False)),
    VendorKind(coscheduling.POD_GROUPS),
    VendorKind(Kind("scheduling.x-k8s.io", "v1alpha1", "elasticquotas", "ElasticQuota")),
    _kueue("localqueues", "LocalQueue", namespaced=True),
    _kueue("clusterqueues", "ClusterQueue"),
    _kueue("cohorts", "Cohort"),
    _kueue("resourceflavors", "ResourceFlavor"),
    _kueue("topologies", "Topology"),
    _kueue("workloadpriorityclasses", "WorkloadPriorityClass"),
)
"""What is installed, and nothing else of these vendors."""


def definition(vendor: VendorKind) -> dict[str, Any]:
    """The CustomResourceDefinition that takes any fields."""
    kind = vendor.kind
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    versions = [
        {
            "name": version,
            "served": True,
            "storage": version == kind.version,
            "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}},
        }
        for version in (kind.version, *vendor.older)
    ]
    metadata: dict[str, Any] = {"labels": {MARK: "true"}}
    if kind.group.endswith((".k8s.io", ".kubernetes.io")):
        metadata["annotations"] = {
            "api-approved.kubernetes.io": "unapproved, a form of gpufleet's local fleet"
        }
    return crds.crd_of(kind, metadata, versions)


async def install_vendor_kinds(client: Client) -> None:
    """Install the kinds that nobody has installed, and wait until the API server serves them."""
    wanted = {vendor.kind.resource: definition(vendor) for vendor in VENDOR_KINDS}
    free = await asyncio.gather(*(_is_free(client, name) for name in wanted))
    await crds.establish(client, [one for one, ours in zip(wanted.values(), free, strict=True) if ours])


async def _is_free(client: Client, name: str) -> bool:
    try:
        found = await client.get(CRDS, name)
    except ApiError as error:
        if error.not_found:
            return True
        raise
    return MARK in (found["metadata"].get("labels") or {})
