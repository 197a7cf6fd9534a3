"""The environment and command line of a container that runs as a process.

Pure: what ConfigMaps and Secrets say is passed in. Later definitions win, `$(NAME)` refers to variables
defined before and `$$` is a dollar sign, as a kubelet expands them. GPUs are shown in the two variables that
CUDA and NVIDIA's runtime read; a container's own value for them wins. Pod and host address are loopback,
where the process can really be reached.
Source: pkg/kubelet/kubelet_pods.go makeEnvironmentVariables, third_party/forked/golang/expansion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.quantities import format_amount, parse_quantity
from gpufleet.kube.objects import Container, EnvVar, Pod
from gpufleet.local.simnodes.machines import HOST_ADDRESS

_REFERENCE = re.compile(r"\$(?:\$|\(([^()]*)\))")
_KEYED = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")
_NAME = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*")


class Source(msgspec.Struct, frozen=True, order=True):
    """A ConfigMap or Secret of the pod's namespace."""

    kind: str
    name: str


Sources = Mapping[Source, Mapping[str, str] | None]
"""The texts of each source by key; None where it does not exist."""


def sources_of(container: Container) -> set[Source]:
    """The ConfigMaps and Secrets that the container's environment needs."""
    found = set()
    for each in container.env_from:
        for kind, reference in (("ConfigMap", each.config_map_ref), ("Secret", each.secret_ref)):
            if reference is not None:
                found.add(Source(kind, reference.name))
    for variable in container.env:
        origin = variable.value_from
        if origin is not None and origin.config_map_key_ref is not None:
            found.add(Source("ConfigMap", origin.config_map_key_ref.name))
        if origin is not None and origin.secret_key_ref is not None:
            found.add(Source("Secret", origin.secret_key_ref.name))
    return found


def container_environment(
    pod: Pod,
    container: Container,
    sources: Sources,
    devices: Iterable[str],
    allocatable: Mapping[str, str],
) -> dict[str, str]:
    """The variables that the pod defines; `allocatable` stands in for limits that it leaves open.

    Raises GpufleetError (CreateContainerConfigError) for a source or key that is missing and not optional.
    """
    uuids = ",".join(devices)
    environment = {
        "HOSTNAME": pod.spec.hostname or pod.metadata.name,
        "NVIDIA_VISIBLE_DEVICES": uuids or "void",
        "CUDA_VISIBLE_DEVICES": uuids,
    }
    for each in container.env_from:
        for kind, reference in (("ConfigMap", each.config_map_ref), ("Secret", each.secret_ref)):
            if reference is not None:
                texts = _texts(sources, Source(kind, reference.name), optional=reference.optional) or {}
                pairs = ((each.prefix + key, text) for key, text in texts.items())
                environment.update((name, text) for name, text in pairs if _NAME.fullmatch(name))
    for variable in container.env:
        text = _value(pod, container, variable, environment, sources, allocatable)
        if text is not None:
            environment[variable.name] = text
    return environment


def command_line(container: Container, environment: Mapping[str, str]) -> list[str]:
    """Command and arguments with their references expanded; empty when the manifest names no command."""
    if not container.command:
        return []
    return [expand(part, environment) for part in (*container.command, *container.args)]


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`text` with `$(NAME)` replaced; an unknown name stays as it is written, `$$` becomes `$`."""

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        return "$" if name is None else environment.get(name, match[0])

    return _REFERENCE.sub(replaced, text)


def _value(
    pod: Pod,
    container: Container,
    variable: EnvVar,
    environment: Mapping[str, str],
    sources: Sources,
    allocatable: Mapping[str, str],
) -> str | None:
    origin = variable.value_from
    if origin is None:
        return expand(variable.value, environment)
    if origin.field_ref is not None:
        return _field(pod, origin.field_ref.field_path)
    if origin.resource_field_ref is not None:
        wanted = origin.resource_field_ref
        holder = _named(pod, wanted.container_name) if wanted.container_name else container
        return _resource(holder, wanted.resource, wanted.divisor or "1", allocatable)
    key = origin.config_map_key_ref or origin.secret_key_ref
    if key is None:
        return None
    kind = "ConfigMap" if origin.config_map_key_ref is not None else "Secret"
    texts = _texts(sources, Source(kind, key.name), optional=key.optional)
    if texts is None or (key.key not in texts and key.optional):
        return None
    if key.key not in texts:
        raise _problem(f"couldn't find key {key.key} in {kind} {pod.metadata.namespace}/{key.name}")
    return texts[key.key]


def _texts(sources: Sources, source: Source, *, optional: bool) -> Mapping[str, str] | None:
    texts = sources.get(source)
    if texts is None and not optional:
        raise _problem(f'{source.kind.lower()} "{source.name}" not found')
    return texts


def _field(pod: Pod, path: str) -> str:
    keyed = _KEYED.fullmatch(path)
    if keyed is not None:
        values: Mapping[str, str] = getattr(pod.metadata, keyed[1])
        return values.get(keyed[2], "")
    fields = {
        "metadata.name": pod.metadata.name,
        "metadata.namespace": pod.metadata.namespace,
        "metadata.uid": pod.metadata.uid,
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": pod.spec.service_account_name,
        **dict.fromkeys(("status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"), HOST_ADDRESS),
    }
    if path not in fields:
        raise _problem(f"unsupported fieldPath: {path}")
    return fields[path]


def _named(pod: Pod, name: str) -> Container:
    found = next((c for c in (*pod.spec.containers, *pod.spec.init_containers) if c.name == name), None)
    if found is None:
        raise _problem(f"container {name} not found")
    return found


def _resource(container: Container, resource: str, divisor: str, allocatable: Mapping[str, str]) -> str:
    side, _, name = resource.partition(".")
    given = container.resources.limits if side == "limits" else container.resources.requests
    quantity = given.get(name) or (allocatable.get(name) if side == "limits" else None) or "0"
    parts = parse_quantity(quantity) / parse_quantity(divisor if divisor != "0" else "1")
    return format_amount("", -(-parts.numerator // parts.denominator))


def _problem(message: str) -> GpufleetError:
    return GpufleetError(reason="CreateContainerConfigError", message=message)
