"""Kinds of the Kubernetes API: which group and version serves them, and at which path.

A `Kind` is all that a request needs to know about a type, so that the client has one method per verb instead
of one per type. For its own work gpufleet names the versions that it was tested with; only kinds that a
user's manifests name are asked of the server (`manifests.Discovery`).
"""

from __future__ import annotations

from urllib.parse import quote

import msgspec

GPUFLEET_GROUP = "gpufleet.dev"
GPUFLEET_VERSION = "v1alpha1"


class Kind(msgspec.Struct, frozen=True):
    """One kind of object. `group` is empty for the core group; `plural` is the name in the path."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`v1` for the core group, else `group/version`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """The name that kubectl and error messages use: `pods`, `leases.coordination.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """The URL path of the collection, of one object, or of its subresource.

        A namespaced kind without namespace is the collection across all namespaces; with a name it needs one
        (ValueError). The namespace is ignored for kinds of cluster scope.
        """
        path = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        if self.namespaced:
            if namespace:
                path = f"{path}/namespaces/{quote(namespace, safe='')}"
            elif name is not None:
                raise ValueError(f"{self.kind} {name} needs a namespace")
        path = f"{path}/{self.plural}"
        if name is not None:
            if not name:
                raise ValueError(f"an empty name for a {self.kind}")
            path = f"{path}/{quote(name, safe=':')}"
        return f"{path}/{subresource}" if subresource else path


def key_of(name: str, namespace: str = "") -> str:
    """The key of an object: `namespace/name`, or `name` for cluster scope."""
    return f"{namespace}/{name}" if namespace else name


PODS = Kind("", "v1", "pods", "Pod")
NODES = Kind("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
CONFIG_MAPS = Kind("", "v1", "configmaps", "ConfigMap")
SECRETS = Kind("", "v1", "secrets", "Secret")
SERVICE_ACCOUNTS = Kind("", "v1", "serviceaccounts", "ServiceAccount")
PERSISTENT_VOLUMES = Kind("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False)
PERSISTENT_VOLUME_CLAIMS = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")

DEPLOYMENTS = Kind("apps", "v1", "deployments", "Deployment")
REPLICA_SETS = Kind("apps", "v1", "replicasets", "ReplicaSet")
JOBS = Kind("batch", "v1", "jobs", "Job")

LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease")
EVENTS = Kind("events.k8s.io", "v1", "events", "Event")
DISRUPTION_BUDGETS = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
PRIORITY_CLASSES = Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False)

RESOURCE_CLAIMS = Kind("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim")
RESOURCE_CLAIM_TEMPLATES = Kind("resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate")

STORAGE_CLASSES = Kind("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False)
CSI_DRIVERS = Kind("storage.k8s.io", "v1", "csidrivers", "CSIDriver", namespaced=False)
CSI_NODES = Kind("storage.k8s.io", "v1", "csinodes", "CSINode", namespaced=False)
CSI_STORAGE_CAPACITIES = Kind("storage.k8s.io", "v1", "csistoragecapacities", "CSIStorageCapacity")

CRDS = Kind(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
MUTATING_POLICIES = Kind(
    "admissionregistration.k8s.io",
    "v1",
    "mutatingadmissionpolicies",
    "MutatingAdmissionPolicy",
    namespaced=False,
)
MUTATING_POLICY_BINDINGS = Kind(
    "admissionregistration.k8s.io",
    "v1",
    "mutatingadmissionpolicybindings",
    "MutatingAdmissionPolicyBinding",
    namespaced=False,
)
VALIDATING_POLICIES = Kind(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicies",
    "ValidatingAdmissionPolicy",
    namespaced=False,
)
VALIDATING_POLICY_BINDINGS = Kind(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicybindings",
    "ValidatingAdmissionPolicyBinding",
    namespaced=False,
)

GPU_NODES = Kind(GPUFLEET_GROUP, GPUFLEET_VERSION, "gpunodes", "GPUNode", namespaced=False)
GPU_POOLS = Kind(GPUFLEET_GROUP, GPUFLEET_VERSION, "gpupools", "GPUPool", namespaced=False)
QUEUES = Kind(GPUFLEET_GROUP, GPUFLEET_VERSION, "queues", "Queue", namespaced=False)

KAI_QUEUES = Kind("scheduling.run.ai", "v2", "queues", "Queue", namespaced=False)
VOLCANO_QUEUES = Kind("scheduling.volcano.sh", "v1beta1", "queues", "Queue", namespaced=False)
CLUSTER_QUEUES = Kind("kueue.x-k8s.io", "v1beta2", "clusterqueues", "ClusterQueue", namespaced=False)
LOCAL_QUEUES = Kind("kueue.x-k8s.io", "v1beta2", "localqueues", "LocalQueue")
COHORTS = Kind("kueue.x-k8s.io", "v1beta2", "cohorts", "Cohort", namespaced=False)
