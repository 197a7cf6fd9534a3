"""Pods in manifests of any kind: wherever a list of containers stands, there is a pod.

Kinds that make pods nest a pod's spec in their own ways (a template, a role, a clique, a task, a group of
workers), and new ones come every month. So nothing is known about kinds here: the tree is walked, and every
object with `containers` is the spec of pods; how many there are is what the nearest object above it says
(`replicas`, `parallelism`, `numNodes`), times the members of a group (`size` of a LeaderWorkerSet). KServe
describes a container by what it serves; an object with `resources` and no containers above is one.
Values that a template tool has yet to fill in (`$NODES`, `<image>`) are unknown, never an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.quantities import resource_amount

Object = Mapping[str, Any]

_COUNTS = ("replicas", "parallelism", "numNodes", "minReplicas")
_DEPTH = 40


class ContainerText(msgspec.Struct, frozen=True):
    """A container as the words in it: image, command with arguments, variables. `resources` are its requests
    and limits; an amount that cannot be read is None. `claims` counts its resource claims.
    """

    name: str = ""
    image: str = ""
    words: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}
    resources: Mapping[str, int | None] = {}
    ports: int = 0
    claims: int = 0


class PodTemplate(msgspec.Struct, frozen=True):
    """Pods of one kind in a manifest. `path` is where they stand (empty for a Pod), `pods` how many there
    are, `group` how many of these work as one (the members of a LeaderWorkerSet's group).
    """

    path: str
    containers: tuple[ContainerText, ...]
    pods: int = 1
    group: int = 1
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    selectors: tuple[tuple[str, str], ...] = ()
    restart: str = ""
    host_ipc: bool = False


class PodSpecText(msgspec.Struct, frozen=True):
    """The spec of pods as it stands in a manifest. `pods` and `group` as in `PodTemplate`; `labels` and
    `annotations` are those of all objects around it, `own` the metadata that the pods themselves get. `role`
    is leader or worker in a group of a LeaderWorkerSet with both.
    """

    path: str
    spec: Object
    own: Object = {}
    pods: int = 1
    group: int = 1
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    role: str = ""

    @property
    def total(self) -> int:
        """How many pods there are, all groups together."""
        members = {"leader": 1, "worker": self.group - 1}.get(self.role, self.group)
        return self.pods * members


def pod_templates(manifest: Object) -> list[PodTemplate]:
    """The pods that an object makes, in the order in which they stand in it."""
    return [_template(found) for found in pod_specs(manifest)]


def pod_specs(manifest: Object) -> list[PodSpecText]:
    """The specs of the pods that an object makes, in the order in which they stand in it."""
    meta = _mapping(manifest.get("metadata"))
    labels, notes = _texts(meta.get("labels")), _texts(meta.get("annotations"))
    return list(_below(manifest, PodSpecText("", {}, {}, labels=labels, annotations=notes), 0))


def _below(value: Any, around: PodSpecText, depth: int) -> Iterator[PodSpecText]:
    """Every spec of pods below a value; `around` says what the objects above it say."""
    if depth > _DEPTH:
        return
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _below(item, _at(around, f"{around.path}[{number}]"), depth + 1)
        return
    if not isinstance(value, Mapping):
        return
    around = _inside(around, value)
    if _is_pod(value):
        yield msgspec.structs.replace(around, spec=value)
        return
    for key, item in value.items():
        if key not in ("metadata", "status"):
            role = {"leaderTemplate": "leader", "workerTemplate": "worker"}.get(key, "")
            below = _at(around, f"{around.path}.{key}".lstrip("."))
            if role and "leaderTemplate" in value:
                below = msgspec.structs.replace(below, role=role)
            yield from _below(item, below, depth + 1)


def _at(around: PodSpecText, path: str) -> PodSpecText:
    return msgspec.structs.replace(around, path=path)


def _inside(around: PodSpecText, value: Object) -> PodSpecText:
    """What is said inside an object, with what it says itself."""
    meta = _mapping(value.get("metadata"))
    pods = next((count for key in _COUNTS if (count := _count(value.get(key))) is not None), around.pods)
    group = around.group
    if "leaderTemplate" in value or "workerTemplate" in value:
        group = _count(value.get("size")) or group
    return msgspec.structs.replace(
        around,
        own=meta or around.own,
        pods=pods,
        group=group,
        labels={**around.labels, **_texts(meta.get("labels"))},
        annotations={**around.annotations, **_texts(meta.get("annotations"))},
    )


def _is_pod(value: Object) -> bool:
    """Whether an object is the spec of pods, or a container of KServe that stands for one."""
    containers = value.get("containers")
    if isinstance(containers, list):
        return any(isinstance(one, Mapping) and ("name" in one or "image" in one) for one in containers)
    return isinstance(value.get("resources"), Mapping) and any(
        isinstance(_mapping(value["resources"]).get(side), Mapping) for side in ("limits", "requests")
    )


def _template(text: PodSpecText) -> PodTemplate:
    spec = text.spec
    found = spec.get("containers")
    sidecars = [
        one
        for one in _sequence(spec.get("initContainers"))
        if isinstance(one, Mapping) and one.get("restartPolicy") == "Always"
    ]
    listed = [one for one in _sequence(found) if isinstance(one, Mapping)] if found else [spec]
    return PodTemplate(
        path=text.path.removesuffix(".spec").removesuffix(".template"),
        containers=tuple(_container(one) for one in (*listed, *sidecars)),
        pods=text.pods,
        group=text.group,
        labels=text.labels,
        annotations=text.annotations,
        selectors=tuple(_selectors(spec)),
        restart=str(spec.get("restartPolicy") or ""),
        host_ipc=spec.get("hostIPC") is True,
    )


def _container(one: Object) -> ContainerText:
    resources = _mapping(one.get("resources"))
    amounts: dict[str, int | None] = {}
    for side in ("requests", "limits"):
        for name, amount in _mapping(resources.get(side)).items():
            amounts[str(name)] = _amount(str(name), amount)
    lines = [*_sequence(one.get("command")), *_sequence(one.get("args"))]
    variables = {
        str(item.get("name")): str(item.get("value"))
        for item in _sequence(one.get("env"))
        if isinstance(item, Mapping) and item.get("value") is not None
    }
    served = [str(one[key]) for key in ("storageUri", "runtime", "model") if isinstance(one.get(key), str)]
    return ContainerText(
        name=str(one.get("name") or ""),
        image=str(one.get("image") or ""),
        words=tuple(word for line in (*lines, *served) for word in str(line).split()),
        variables=variables,
        resources=amounts,
        ports=len(_sequence(one.get("ports"))),
        claims=len(_sequence(resources.get("claims"))),
    )


def _selectors(spec: Object) -> Iterator[tuple[str, str]]:
    """Labels that a node must have, by nodeSelector or by required affinity with one or more values."""
    yield from _texts(spec.get("nodeSelector")).items()
    affinity = _mapping(_mapping(spec.get("affinity")).get("nodeAffinity"))
    required = _mapping(affinity.get("requiredDuringSchedulingIgnoredDuringExecution"))
    for term in _sequence(required.get("nodeSelectorTerms")):
        for rule in _sequence(_mapping(term).get("matchExpressions")):
            if _mapping(rule).get("operator") == "In":
                for value in _sequence(_mapping(rule).get("values")):
                    yield str(_mapping(rule).get("key")), str(value)


def _amount(resource: str, value: Any) -> int | None:
    try:
        return resource_amount(resource, str(value))
    except GpufleetError:
        return None


def _count(value: Any) -> int | None:
    text = str(value)
    return int(text) if text.isdecimal() and len(text) < 7 else None


def _mapping(value: Any) -> Object:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else ()


def _texts(value: Any) -> dict[str, str]:
    return {str(key): str(text) for key, text in _mapping(value).items()}
