"""The text of one node's page, in the format of Prometheus: a pure function of what was seen and sampled.

A series has the labels of DCGM exporter in its order: gpu, UUID, pci_bus_id, device, modelName, for a GPU
instance its profile and id, the host name, the driver's version, then who holds it (container, namespace,
pod). Two things differ: label values are escaped, and `DCGM_FI_DEV_XID_ERRORS` does not carry the XID's text
in a label, which would make every XID a series of its own.

A GPU that several containers share has one series per container for an amount, and they sum to the GPU's
value (`attribution`); anything else has one series without a container, and `gpufleet_gpu_info` says who
holds the GPU. What has no value is left out, and counted in `gpufleet_metric_unavailable`.

Labels change only with the devices and their holders, so they are made once, in a `Layout`; a sample is then
written by joining them with numbers.
Source: dcgm-exporter internal/pkg/rendermetrics (4.8.2), Prometheus text exposition format 0.0.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from prometheus_client.metrics import MetricWrapperBase

from gpufleet.devices import exporter_metrics as metrics
from gpufleet.devices.attribution import (
    Entity,
    Holder,
    Key,
    MemoryUse,
    entities,
    memory_parts,
    parts,
    unmapped,
)
from gpufleet.devices.backend import Sample
from gpufleet.devices.exporter_fields import ABSENT, DEFAULT_FIELDS, DRIVER_LABEL, FIELDS, Field, Names
from gpufleet.devices.inventory import Inventory
from gpufleet.kube.gpunode import GPUAllocation

HostnameLabel = Literal["upper", "lower", "both"]
HOSTNAMES: dict[HostnameLabel, tuple[str, ...]] = {
    "upper": ("Hostname",),
    "lower": ("hostname",),
    "both": ("Hostname", "hostname"),
}
"""The label with the node's name: as all releases of DCGM exporter have it, as its next one will, or both."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NOT_READ = "it was not read yet"

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Options(msgspec.Struct, frozen=True):
    """How pages are written: names of metrics, label of the host name, metrics by classic name, and whether
    the pod's uid is a label too.
    """

    names: Names = "classic"
    hostname: HostnameLabel = "upper"
    fields: frozenset[str] = DEFAULT_FIELDS
    pod_uid: bool = False


class Row(msgspec.Struct, frozen=True):
    """The labels of one GPU or GPU instance: without a holder, and with each of them."""

    plain: str
    held: tuple[str, ...]


class Family(msgspec.Struct, frozen=True):
    """A metric under one name; its rows are in the order of the layout's entities."""

    name: str
    header: str
    field: Field
    rows: tuple[Row, ...]


class Layout(msgspec.Struct, frozen=True):
    """All of a page that stays while devices and holders are the same."""

    node: str
    entities: tuple[Entity, ...]
    families: tuple[Family, ...]
    fields: tuple[Field, ...]
    own: str

    def shared_gpus(self) -> tuple[str, ...]:
        """UUIDs of the GPUs of which several containers hold one thing."""
        return tuple(dict.fromkeys(one.gpu.uuid for one in self.entities if len(one.holders) > 1))


class Source(msgspec.Struct, frozen=True):
    """Somebody who is asked (`driver`, `kubelet`): the age of the last answer, how long it took (None before
    the first) and how many questions had none, by reason.
    """

    name: str
    age_s: float
    duration_s: float | None = None
    failures: Mapping[str, int] = {}


def layout(
    node: str, inventory: Inventory, allocated: Sequence[GPUAllocation] = (), options: Options | None = None
) -> Layout:
    """The layout of a node's page."""
    options = options or Options()
    found = entities(inventory, allocated)
    chosen = tuple(field for name, field in FIELDS.items() if name in options.fields)
    rows = {
        label: tuple(_row(one, node, (label, inventory.driver), options) for one in found)
        for label in DRIVER_LABEL.values()
    }
    families = tuple(
        Family(
            name,
            f"# HELP {name} {field.help}\n# TYPE {name} {field.type}",
            field,
            rows[DRIVER_LABEL["classic" if name == field.classic and options.names != "new" else "new"]],
        )
        for field in chosen
        for name in field.names(options.names)
    )
    own = _family(
        metrics.GPU_INFO, ((labels, "1") for one in found for labels in _info(node, inventory, one))
    )
    own += _family(metrics.GPU_SHARE, (pair for one in found for pair in _shares(node, one)))
    own += _family(metrics.UNMAPPED, [({"node": node}, str(len(unmapped(inventory, allocated))))])
    return Layout(node, found, families, chosen, own)


def render(laid: Layout, samples: Iterable[Sample], memory: MemoryUse | None = None) -> str:
    """The page of a sample, but for what `tail` adds. `memory` is of processes on GPUs that are shared."""
    read = {(sample.uuid, sample.instance): sample for sample in samples}
    live = [(place, one, read[one.key].values) for place, one in enumerate(laid.entities) if one.key in read]
    text = []
    for family in laid.families:
        lines = [family.header]
        name, classic, whole = family.name, family.field.classic, family.field.split == "whole"
        number = "%d" if family.field.whole_numbers else "%f"
        for place, entity, values in live:
            value = values.get(classic)
            if value is None or not math.isfinite(value):
                continue
            row = family.rows[place]
            if len(row.held) > 1 and not whole:
                amounts = _divided(entity, family.field, value, memory or {})
                lines += [f"{name}{label} {part:f}" for label, part in zip(row.held, amounts, strict=True)]
            else:
                label = row.held[0] if len(row.held) == 1 else row.plain
                lines.append(f"{name}{label} {number % value}")
        if len(lines) > 1:
            text.append("\n".join(lines))
    return "\n".join([*text, laid.own]) + _unavailable(laid, read)


def tail(node: str, sources: Iterable[Source]) -> str:
    """What is written anew for every reader: how old everything else is."""
    asked = tuple(sources)
    ages = [({"node": node, "source": one.name}, f"{one.age_s:.3f}") for one in asked]
    durations = [
        ({"node": node, "source": one.name}, f"{one.duration_s:.6f}")
        for one in asked
        if one.duration_s is not None
    ]
    failures = [
        ({"node": node, "source": one.name, "reason": reason}, str(count))
        for one in asked
        for reason, count in sorted(one.failures.items())
    ]
    return (
        _family(metrics.SAMPLE_AGE, ages)
        + _family(metrics.SAMPLE_SECONDS, durations)
        + _family(metrics.SAMPLE_FAILURES, failures)
    )


def _row(one: Entity, node: str, driver: tuple[str, str], options: Options) -> Row:
    gpu = one.gpu
    labels = {
        "gpu": str(gpu.index),
        "UUID": gpu.uuid,
        "pci_bus_id": gpu.pci_bus_id,
        "device": f"nvidia{gpu.index}",
        "modelName": gpu.name,
    }
    if one.instance is not None:
        labels |= {"GPU_I_PROFILE": one.instance.profile, "GPU_I_ID": str(one.instance.id)}
    labels |= dict.fromkeys(HOSTNAMES[options.hostname], node)
    labels[driver[0]] = driver[1]
    return Row(
        _labels(labels),
        tuple(_labels(labels | _holder(holder, pod_uid=options.pod_uid)) for holder in one.holders),
    )


def _holder(holder: Holder, *, pod_uid: bool = False) -> dict[str, str]:
    labels = {"container": holder.container, "namespace": holder.namespace, "pod": holder.pod}
    return {**labels, "pod_uid": holder.pod_uid} if pod_uid else labels


def _divided(entity: Entity, field: Field, value: float, memory: MemoryUse) -> tuple[float, ...]:
    if field.classic == "DCGM_FI_DEV_FB_USED":
        return memory_parts(entity.holders, value, memory.get(entity.key, {}))
    return tuple(value * part for part in parts(entity.holders))


def _device_labels(node: str, one: Entity) -> dict[str, str]:
    instance = one.instance
    return {
        "node": node,
        "gpu": str(one.gpu.index),
        "UUID": one.gpu.uuid,
        "GPU_I_ID": "" if instance is None else str(instance.id),
        "GPU_I_PROFILE": "" if instance is None else instance.profile,
    }


def _info(node: str, inventory: Inventory, one: Entity) -> Iterable[dict[str, str]]:
    devices = (one.gpu.uuid,) if one.instance is None else tuple(part.uuid for part in one.instance.compute)
    labels = {
        **_device_labels(node, one),
        "device_uuid": ",".join(devices),
        "product": one.gpu.name,
        "driver": inventory.driver,
    }
    if not one.holders:
        yield labels
    for holder in one.holders:
        yield labels | _holder(holder)


def _shares(node: str, one: Entity) -> Iterable[tuple[dict[str, str], str]]:
    for holder, share in zip(one.holders, one.shares(), strict=True):
        yield _device_labels(node, one) | _holder(holder), f"{share:f}"


def _unavailable(laid: Layout, read: Mapping[Key, Sample]) -> str:
    """The gaps of a page: which metrics how many GPUs and GPU instances lack, and why."""
    gaps: dict[tuple[str, str], int] = {}
    for one in laid.entities:
        sample = read.get(one.key)
        if sample is None or "*" in sample.missing:
            reasons = {"*": one.gpu.lost or (sample.missing["*"] if sample else NOT_READ)}
        else:
            reasons = {
                field.classic: sample.missing.get(field.classic, ABSENT[field.source])
                for field in laid.fields
                if not math.isfinite(sample.values.get(field.classic, math.nan))
            }
        for gap in reasons.items():
            gaps[gap] = gaps.get(gap, 0) + 1
    return _family(
        metrics.UNAVAILABLE,
        (
            ({"node": laid.node, "field": field, "reason": reason}, str(count))
            for (field, reason), count in sorted(gaps.items())
        ),
    )


def _family(metric: MetricWrapperBase, series: Iterable[tuple[Mapping[str, str], str]]) -> str:
    """A metric of ours; nothing when it has no series."""
    [family] = metric.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    lines = "".join(f"{name}{_labels(labels)} {value}\n" for labels, value in series)
    return f"# HELP {name} {family.documentation}\n# TYPE {name} {family.type}\n{lines}" if lines else ""


def _labels(labels: Mapping[str, str]) -> str:
    """Labels in braces; an empty value is no label."""
    written = (f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items() if value)
    return f"{{{','.join(written)}}}"
