"""The policy that keeps picks of devices the scheduler's: nobody else writes `gpufleet.dev/devices` on a pod,
or `gpufleet.dev/visible-devices`.

The annotations come with a binding, which sets them without an update of the pod. So a pod that is created
with one, or an update that changes it (also one of the status, which may change metadata as well), is
somebody else's, whoever that is. Who may bind pods decides more than which GPU they get, and is not asked
here.
Source: ValidatingAdmissionPolicy (admissionregistration.k8s.io/v1, since Kubernetes 1.30).
"""

from __future__ import annotations

from typing import Any

from gpufleet.kube.conventions.picked_devices import DEVICES_ANNOTATION, VISIBLE_ANNOTATION
from gpufleet.kube.kinds import VALIDATING_POLICIES, VALIDATING_POLICY_BINDINGS

POD_RESOURCES = ("pods", "pods/status", "pods/ephemeralcontainers", "pods/resize")
"""All by which the metadata of a pod can be changed."""
NAME = "picked-devices.gpufleet.dev"
MESSAGE = (
    f"the annotations {DEVICES_ANNOTATION} and {VISIBLE_ANNOTATION} say which GPUs the scheduler has picked "
    "and come with the pod's binding; leave them out (a copy of a pod's manifest may contain them)"
)


def picks_policy() -> dict[str, Any]:
    """The ValidatingAdmissionPolicy."""
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": [*POD_RESOURCES],
    }
    return {
        "apiVersion": VALIDATING_POLICIES.api_version,
        "kind": VALIDATING_POLICIES.kind,
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "gpufleet"}},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [
                {"expression": _unchanged(key), "message": MESSAGE, "reason": "Forbidden"}
                for key in (DEVICES_ANNOTATION, VISIBLE_ANNOTATION)
            ],
        },
    }


def _unchanged(key: str) -> str:
    now, before = (f"{one}.metadata.?annotations[?'{key}']" for one in ("object", "oldObject"))
    return f"{now} == (oldObject == null ? optional.none() : {before})"


def picks_policy_binding() -> dict[str, Any]:
    """The binding that puts the policy into force for the whole cluster."""
    return {
        "apiVersion": VALIDATING_POLICY_BINDINGS.api_version,
        "kind": VALIDATING_POLICY_BINDINGS.kind,
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "gpufleet"}},
        "spec": {"policyName": NAME, "validationActions": ["Deny"]},
    }
