"""The policy that keeps picks of devices the scheduler's: nobody else writes `gpufleet.dev/devices` on a pod.

The annotation comes with a binding, which sets it without an update of the pod. So a pod that is created with
it, or an update that changes it (also one of the status, which may change metadata as well), is somebody
else's, whoever that is. Who may bind pods decides more than which GPU they get, and is not asked here.
Source: ValidatingAdmissionPolicy (admissionregistration.k8s.io/v1, since Kubernetes 1.30).
"""

from __future__ import annotations

from typing import Any

from gpufleet.kube.conventions.picked_devices import DEVICES_ANNOTATION
from gpufleet.kube.kinds import VALIDATING_POLICIES, VALIDATING_POLICY_BINDINGS

NAME = "picked-devices.gpufleet.dev"
MESSAGE = (
    f"the annotation {DEVICES_ANNOTATION} says which GPUs the scheduler has picked and comes with the pod's "
    "binding; leave it out (a copy of a pod's manifest may contain it)"
)


def picks_policy() -> dict[str, Any]:
    """The ValidatingAdmissionPolicy."""
    now = f"object.metadata.?annotations[?'{DEVICES_ANNOTATION}']"
    before = f"oldObject.metadata.?annotations[?'{DEVICES_ANNOTATION}']"
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["pods", "pods/status", "pods/ephemeralcontainers", "pods/resize"],
    }
    return {
        "apiVersion": VALIDATING_POLICIES.api_version,
        "kind": VALIDATING_POLICIES.kind,
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "gpufleet"}},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [
                {
                    "expression": f"{now} == (oldObject == null ? optional.none() : {before})",
                    "message": MESSAGE,
                    "reason": "Forbidden",
                }
            ],
        },
    }


def picks_policy_binding() -> dict[str, Any]:
    """The binding that puts the policy into force for the whole cluster."""
    return {
        "apiVersion": VALIDATING_POLICY_BINDINGS.api_version,
        "kind": VALIDATING_POLICY_BINDINGS.kind,
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "gpufleet"}},
        "spec": {"policyName": NAME, "validationActions": ["Deny"]},
    }
