"""Paths of the API."""

from __future__ import annotations

import pytest

from gpufleet.kube.kinds import CRDS, GPU_NODES, LEASES, NODES, PODS, key_of


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PODS.path(), "/api/v1/pods"),
        (PODS.path("ns"), "/api/v1/namespaces/ns/pods"),
        (PODS.path("ns", "p"), "/api/v1/namespaces/ns/pods/p"),
        (PODS.path("ns", "p", "binding"), "/api/v1/namespaces/ns/pods/p/binding"),
        (NODES.path(name="n"), "/api/v1/nodes/n"),
        (NODES.path("ignored", "n", "status"), "/api/v1/nodes/n/status"),
        (LEASES.path("ns", "l"), "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l"),
        (GPU_NODES.path(), "/apis/gpufleet.dev/v1alpha1/gpunodes"),
        (PODS.path("ns", "../../nodes?x=#"), "/api/v1/namespaces/ns/pods/..%2F..%2Fnodes%3Fx%3D%23"),
    ],
)
def test_paths_are_those_of_the_api_and_quoted(path: str, expected: str) -> None:
    assert path == expected


def test_a_namespaced_object_needs_a_namespace_and_a_name() -> None:
    with pytest.raises(ValueError, match="needs a namespace"):
        PODS.path(name="p")
    with pytest.raises(ValueError, match="empty name"):
        NODES.path(name="")


def test_names_of_kinds_are_those_of_kubectl() -> None:
    assert (PODS.api_version, PODS.resource) == ("v1", "pods")
    assert (CRDS.api_version, CRDS.resource) == (
        "apiextensions.k8s.io/v1",
        "customresourcedefinitions.apiextensions.k8s.io",
    )
    assert (key_of("a", "ns"), key_of("a")) == ("ns/a", "a")
