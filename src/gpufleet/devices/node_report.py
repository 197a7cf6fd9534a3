"""What an agent says in its `GPUNode`: a pure function of what was observed, offered, held and measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from gpufleet.devices.backend import Sample
from gpufleet.devices.device_health import Health
from gpufleet.devices.feature_labels import label_value
from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.preferred_allocation import Topology
from gpufleet.fleet import mig
from gpufleet.kube.gpunode import (
    GPUAllocation,
    GPUDevice,
    GPUInstance,
    GPUNodeStatus,
    GPUResource,
    GPUSummary,
)
from gpufleet.kube.objects import Condition
from gpufleet.kube.times import format_time

_UNKNOWN_LINKS = Topology()
_READINGS = {
    "memory_used_mib": "DCGM_FI_DEV_FB_USED",
    "temperature_c": "DCGM_FI_DEV_GPU_TEMP",
    "power_w": "DCGM_FI_DEV_POWER_USAGE",
}
_MEMORY = ("DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_RESERVED")
_UTIL_STEP, _TEMPERATURE_STEP, _MEMORY_STEP = 10, 4, 0.02


def node_status(
    inventory: Inventory,
    health: Health,
    quarantined: frozenset[str],
    resources: Iterable[GPUResource],
    allocations: Iterable[GPUAllocation],
    samples: Iterable[Sample],
    topology: Topology = _UNKNOWN_LINKS,
) -> GPUNodeStatus:
    """Summary, devices, resources, allocations and links; the rest says how the agent itself is. Links of
    other GPUs than the node has now are left out.
    """
    held = tuple(allocations)
    fractions = Counter[str]()
    for one in held:
        fractions.update(dict.fromkeys(one.devices, one.milli))
    measured = {sample.uuid: sample.values for sample in samples if sample.instance is None}
    reasons = {
        gpu.uuid: health[gpu.uuid].reason
        if gpu.uuid in health
        else ("Quarantined" if gpu.uuid in quarantined else "")
        for gpu in inventory.gpus
    }
    return GPUNodeStatus(
        summary=_summary(inventory, reasons, {uuid for one in held for uuid in one.devices}),
        devices=tuple(
            _device(gpu, reasons[gpu.uuid], fractions[gpu.uuid], measured.get(gpu.uuid, {}))
            for gpu in inventory.gpus
        ),
        resources=tuple(resources),
        allocations=held,
        links=topology.table.rows if topology.gpus == tuple(gpu.uuid for gpu in inventory.gpus) else (),
    )


Told = tuple[str, bool, str, str]
"""A condition: its type, whether it is True, reason and message."""


def conditions(told: Iterable[Told], before: Iterable[Condition], now: float) -> tuple[Condition, ...]:
    """The conditions of a GPUNode at a time; each keeps its time for as long as its status stands."""
    known = {one.type: one for one in before}
    found = []
    for kind, good, reason, message in told:
        status, last = "True" if good else "False", known.get(kind)
        since = last.last_transition_time if last and last.status == status else format_time(now)
        found.append(
            Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=since)
        )
    return tuple(found)


def utilisation(values: Mapping[str, float]) -> float:
    """Percent of time that a GPU worked; under MIG, where that is not measured, of its graphics engine."""
    return values.get("DCGM_FI_DEV_GPU_UTIL", 100 * values.get("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 0.0))


def moved(before: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """Whether readings of a GPU differ by more than people care about."""
    if not before or not now:
        return bool(before) != bool(now)
    temperature, memory = _READINGS["temperature_c"], _READINGS["memory_used_mib"]
    return (
        abs(utilisation(now) - utilisation(before)) > _UTIL_STEP
        or abs(now.get(temperature, 0) - before.get(temperature, 0)) > _TEMPERATURE_STEP
        or abs(now.get(memory, 0) - before.get(memory, 0))
        > _MEMORY_STEP * sum(now.get(name, 0) for name in _MEMORY)
    )


def _summary(inventory: Inventory, reasons: Mapping[str, str], held: set[str]) -> GPUSummary:
    products = Counter(label_value(gpu.name) for gpu in inventory.gpus if gpu.name)
    profiles = [one.profile for gpu in inventory.gpus for one in gpu.instances]
    enabled = any(gpu.mig == "on" for gpu in inventory.gpus)
    return GPUSummary(
        product=products.most_common(1)[0][0] if products else "",
        gpus=len(inventory.gpus),
        allocated=sum(not held.isdisjoint(_parts(gpu)) for gpu in inventory.gpus),
        unhealthy=sum(bool(reason) for reason in reasons.values()),
        mig=(mig.summary(profiles) or "on") if enabled else "off",
    )


def _parts(gpu: GPU) -> set[str]:
    """Everything of a GPU that a container can hold."""
    return {gpu.uuid, *(part.uuid for one in gpu.instances for part in one.compute)}


def _device(gpu: GPU, reason: str, fraction_milli: int, values: Mapping[str, float]) -> GPUDevice:
    return GPUDevice(
        index=gpu.index,
        uuid=gpu.uuid,
        product=label_value(gpu.name),
        memory_mib=gpu.memory_mib,
        healthy=not reason,
        reason=reason,
        fraction_milli=fraction_milli,
        mig_enabled=gpu.mig == "on",
        instances=tuple(
            GPUInstance(
                uuid=one.whole.uuid,
                profile=one.profile,
                start=one.start,
                size=one.size,
                healthy=not reason,
            )
            for one in gpu.instances
            if one.whole is not None
        ),
        util_percent=round(utilisation(values)),
        **{field: round(values.get(metric, 0)) for field, metric in _READINGS.items()},
    )
