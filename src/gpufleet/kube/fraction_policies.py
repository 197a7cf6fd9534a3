"""The policies about pods with a fraction of GPUs: how such a pod gets its GPU, and that it gets no other.

A fraction is no resource, so no device plugin hands it out. The container learns its GPUs from a variable
that takes its value from an annotation (`gpufleet.dev/visible-devices`), which comes with the binding and
which the kubelet reads when the container starts. A mutating policy adds the variable to the container that
gets the fraction. A validating policy refuses a pod that says in a manifest which GPUs it sees: it would have
others than it was given, and they may be somebody's. What a pod asks for stays as it was created: the
variable is added then, and a fraction that was taken away would be free while its pod still uses it.

Pods of other schedulers than `schedulers` are left alone: they may have a way of their own.
Source: MutatingAdmissionPolicy (admissionregistration.k8s.io/v1, since Kubernetes 1.36); KAI-Scheduler's
binder for the names of the variables, `NVIDIA_VISIBLE_DEVICES` and `GPU_PORTION`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpufleet.kube.conventions.fractions import CONTAINER, DEVICES, FRACTION, MEMORY
from gpufleet.kube.conventions.picked_devices import VISIBLE_ANNOTATION
from gpufleet.kube.kinds import (
    MUTATING_POLICIES,
    MUTATING_POLICY_BINDINGS,
    VALIDATING_POLICIES,
    VALIDATING_POLICY_BINDINGS,
    Kind,
)
from gpufleet.kube.picks_policy import POD_RESOURCES

NAME = "fractions.gpufleet.dev"
VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
PORTION = "GPU_PORTION"
VISIBLE_PATH = f"metadata.annotations['{VISIBLE_ANNOTATION}']"
"""The field that the variable takes its value from."""
OWN_GPUS = (
    f"a pod with a fraction of a GPU sees the GPUs that the scheduler picks: leave {VISIBLE_DEVICES} out, or "
    f'take it from the field {VISIBLE_PATH}; other containers of the pod may set it to "void"'
)
AS_CREATED = f"the fraction of a pod ({FRACTION}, {MEMORY}, {DEVICES}, {CONTAINER}) stays as it was created"

_NO_GPUS = "['', 'void', 'none']"
_ANNOTATIONS = "object.metadata.?annotations"
_CHOSEN = f"{_ANNOTATIONS}[?'{CONTAINER}'].orValue(object.spec.containers[0].name)"
_IS_FRACTION = f"({_ANNOTATIONS}[?'{FRACTION}'].hasValue() || {_ANNOTATIONS}[?'{MEMORY}'].hasValue())"
_OURS = f'e.?valueFrom.?fieldRef.?fieldPath == optional.of("{VISIBLE_PATH}")'


def fraction_policies(schedulers: Iterable[str]) -> list[tuple[Kind, dict[str, Any]]]:
    """Both policies and their bindings, for pods of these schedulers, each with its kind."""
    rows = (
        (MUTATING_POLICIES, _adding(schedulers)),
        (MUTATING_POLICY_BINDINGS, {"policyName": NAME}),
        (VALIDATING_POLICIES, _refusing(schedulers)),
        (VALIDATING_POLICY_BINDINGS, {"policyName": NAME, "validationActions": ["Deny"]}),
    )
    labels = {"app.kubernetes.io/part-of": "gpufleet"}
    return [
        (
            kind,
            {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                "metadata": {"name": NAME, "labels": labels},
                "spec": spec,
            },
        )
        for kind, spec in rows
    ]


def _adding(schedulers: Iterable[str]) -> dict[str, Any]:
    container = "object.spec.containers[variables.place]"
    base = "'/spec/containers/' + string(variables.place) + '/env"
    rows = [f"({container}.?env.hasValue() ? [] : [JSONPatch{{op: 'add', path: {base}', value: []}}])"]
    for name, path, condition in (
        (VISIBLE_DEVICES, VISIBLE_PATH, "true"),
        (PORTION, f"metadata.annotations['{FRACTION}']", f"{_ANNOTATIONS}[?'{FRACTION}'].hasValue()"),
    ):
        there = f"{container}.?env.orValue([]).exists(e, e.name == '{name}')"
        added = f"JSONPatch{{op: 'add', path: {base}/0', value: {_variable(name, path)}}}"
        rows.append(f"({condition} && !{there} ? [{added}] : [])")
    return {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "IfNeeded",
        "matchConstraints": _pods(["CREATE"], ["pods"]),
        "matchConditions": [
            _scheduled_by(schedulers),
            {"name": "fraction", "expression": _IS_FRACTION},
        ],
        "variables": [
            {"name": "place", "expression": f"object.spec.containers.map(c, c.name).indexOf({_CHOSEN})"}
        ],
        "mutations": [
            {
                "patchType": "JSONPatch",
                "jsonPatch": {"expression": f"variables.place < 0 ? [] : {' + '.join(rows)}"},
            }
        ],
    }


def _variable(name: str, path: str) -> str:
    env = "Object.spec.containers.env"
    field = f'{env}.valueFrom.fieldRef{{fieldPath: "{path}"}}'
    return f"{env}{{name: '{name}', valueFrom: {env}.valueFrom{{fieldRef: {field}}}}}"


def _refusing(schedulers: Iterable[str]) -> dict[str, Any]:
    every = "(object.spec.containers + object.spec.?initContainers.orValue([]))"
    none = f"(c.name != {_CHOSEN} && !has(e.valueFrom) && e.?value.orValue('') in {_NO_GPUS})"
    seen = f"{every}.all(c, c.?env.orValue([]).all(e, e.name != '{VISIBLE_DEVICES}' || {_OURS} || {none}))"
    same = " && ".join(
        f"{_ANNOTATIONS}[?'{key}'] == oldObject.metadata.?annotations[?'{key}']"
        for key in (FRACTION, MEMORY, DEVICES, CONTAINER)
    )
    return {
        "failurePolicy": "Fail",
        "matchConstraints": _pods(["CREATE", "UPDATE"], [*POD_RESOURCES]),
        "matchConditions": [_scheduled_by(schedulers)],
        "validations": [
            {
                "expression": f"oldObject != null || !{_IS_FRACTION} || {seen}",
                "message": OWN_GPUS,
                "reason": "Forbidden",
            },
            {"expression": f"oldObject == null || ({same})", "message": AS_CREATED, "reason": "Forbidden"},
        ],
    }


def _scheduled_by(schedulers: Iterable[str]) -> dict[str, str]:
    names = ", ".join(f"'{name}'" for name in sorted(schedulers))
    return {"name": "scheduler", "expression": f"object.spec.schedulerName in [{names}]"}


def _pods(operations: list[str], resources: list[str]) -> dict[str, Any]:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": operations, "resources": resources}
    return {"resourceRules": [rule]}
