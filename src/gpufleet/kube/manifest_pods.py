"""The pods that manifests of any kind would make, as values, without making them.

What the API server and the controllers would add is added: requests that follow from limits, the value of a
priority class, an owner, names. How many pods there are is what `conventions.pod_templates` reads. Pods that
a DaemonSet would make are left out: there is one on each node, and a question about them is one about nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.pods import Pod
from gpufleet.kube import objects
from gpufleet.kube.conventions.pod_templates import Object, PodSpecText, pod_specs
from gpufleet.kube.values import pod_value

MOST = 100_000
"""How many pods a manifest may make here; more is a slip of the keyboard."""

SYSTEM_PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}

_OWNERS = {"Deployment": "ReplicaSet"}
"""Kinds whose pods belong to an object of another kind, which makes them."""

_QUANTITIES = ("requests", "limits", "overhead")


class ManifestPods(msgspec.Struct, frozen=True):
    """Pods in the order in which they stand in the manifests, and remarks for whoever asked."""

    pods: tuple[Pod, ...]
    remarks: tuple[str, ...] = ()


def manifest_pods(
    manifests: Sequence[Object], *, namespace: str, priorities: Mapping[str, int]
) -> ManifestPods:
    """The pods of manifests; `namespace` is for objects that name none, `priorities` are values by class.

    Raises GpufleetError: InvalidManifest, BadQuantity.
    """
    classes = {**SYSTEM_PRIORITIES, **priorities, **_classes(manifests)}
    pods: list[Pod] = []
    remarks: dict[str, None] = {}
    for manifest in manifests:
        specs = pod_specs(manifest)
        if manifest.get("kind") == "DaemonSet" and specs:
            remarks[f"{_title(manifest)} runs on every node and is left out"] = None
            continue
        if sum(text.total for text in specs) + len(pods) > MOST:
            raise _invalid(manifest, f"more than {MOST} pods")
        for text in specs:
            wanted = str(text.spec.get("priorityClassName") or "")
            if wanted and wanted not in classes:
                remarks[f"the value of priority class {wanted} is not known; 0 is assumed"] = None
            pods += _pods(manifest, text, len(specs) > 1, namespace, classes.get(wanted, 0))
    return ManifestPods(tuple(pods), tuple(remarks))


def _pods(manifest: Object, text: PodSpecText, several: bool, namespace: str, priority: int) -> Iterator[Pod]:
    kind, meta = str(manifest.get("kind") or ""), _mapping(manifest.get("metadata"))
    name = str(meta.get("name") or meta.get("generateName") or kind or "pod").rstrip("-").lower()
    where = str(meta.get("namespace") or namespace)
    own = text.own if kind == "Pod" or text.own is not manifest.get("metadata") else {}
    metadata: dict[str, Any] = {
        "namespace": where,
        "labels": _mapping(own.get("labels")),
        "annotations": _mapping(own.get("annotations")),
    }
    if kind != "Pod":
        owner = {"kind": _OWNERS.get(kind, kind), "name": name, "uid": f"{where}/{kind}/{name}"}
        metadata["ownerReferences"] = [{**owner, "controller": True}]
    template = _value(manifest, metadata, _spec(text.spec, priority))
    base = f"{name}-{_slug(text.path)}" if several else name
    for index in range(text.total):
        called = base if kind == "Pod" else f"{base}-{index}"
        yield msgspec.structs.replace(template, name=called, uid=f"{where}/{kind}/{called}")


def _spec(spec: Object, priority: int) -> dict[str, Any]:
    """The spec as the API server would have it. KServe describes a container where others have a spec."""
    given = dict(spec) if isinstance(spec.get("containers"), list) else {"containers": [spec]}
    found = {**_cleaned(given), "nodeName": ""}
    found.setdefault("priority", priority)
    for field in ("containers", "initContainers"):
        for container in found.get(field, ()):
            container.setdefault("name", "main")
            resources = container.get("resources") or {}
            limits = resources.get("limits") or {}
            container["resources"] = {
                **resources,
                "requests": {**limits, **(resources.get("requests") or {})},
            }
    return found


def _cleaned(value: Any, *, amounts: bool = False) -> Any:
    """A copy without what is null, and with every quantity as text."""
    if isinstance(value, Mapping):
        return {
            str(key): _cleaned(part, amounts=amounts or key in _QUANTITIES)
            for key, part in value.items()
            if part is not None
        }
    if isinstance(value, list):
        return [_cleaned(part) for part in value if part is not None]
    return str(value) if amounts and not isinstance(value, bool) else value


def _value(manifest: Object, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> Pod:
    try:
        body = {"metadata": _cleaned(metadata), "spec": spec}
        return pod_value(msgspec.convert(body, objects.Pod))
    except msgspec.ValidationError as error:
        raise _invalid(manifest, str(error)) from None


def _classes(manifests: Iterable[Object]) -> dict[str, int]:
    """The priority classes among manifests."""
    return {
        str(_mapping(one.get("metadata")).get("name")): int(one["value"])
        for one in manifests
        if one.get("kind") == "PriorityClass" and isinstance(one.get("value"), int)
    }


def _slug(path: str) -> str:
    """The part of a path that tells one template of an object from another, as a part of a name."""
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", path) if part not in ("spec", "template", "")]
    return "-".join(part.lower() for part in parts[-2:]) or "pods"


def _title(manifest: Object) -> str:
    meta = _mapping(manifest.get("metadata"))
    return f"{manifest.get('kind') or 'object'}/{meta.get('name') or ''}"


def _invalid(manifest: Object, why: str) -> GpufleetError:
    return GpufleetError(
        reason="InvalidManifest",
        message=f"the pods of {_title(manifest)} cannot be read: {why}",
        hint="kubectl apply --dry-run=server -f FILE says more",
    )


def _mapping(value: Any) -> Object:
    return value if isinstance(value, Mapping) else {}
