"""What a node's devices look like in its `GPUNode`: a pure function of the state and of the time."""

from __future__ import annotations

from collections import Counter

from gpufleet.devices.simulated import Device, Holder, NodeDevices
from gpufleet.fleet import mig
from gpufleet.kube.gpunode import (
    GPUAllocation,
    GPUDevice,
    GPUInstance,
    GPUNodeStatus,
    GPUResource,
    GPUSummary,
)


def device_status(state: NodeDevices, now: float) -> GPUNodeStatus:
    """Summary, devices, resources and allocations; the rest of the status is the agent's."""
    return GPUNodeStatus(
        summary=_summary(state),
        devices=tuple(_device(state, device, now) for device in state.devices),
        resources=tuple(
            GPUResource(name=offer.resource, capacity=offer.capacity, healthy=offer.healthy)
            for offer in state.offers()
        ),
        allocations=allocations(state),
    )


def allocations(state: NodeDevices) -> tuple[GPUAllocation, ...]:
    """Who holds which GPU or MIG instance."""
    return tuple(
        GPUAllocation(
            namespace=holding.holder.namespace,
            pod=holding.holder.pod,
            pod_uid=holding.holder.uid,
            container=holding.container,
            resource=holding.resource,
            devices=holding.devices,
            ids=() if holding.ids == holding.devices else holding.ids,
        )
        for holding in state.holdings
    )


def restored(state: NodeDevices, recorded: tuple[GPUAllocation, ...], now: float) -> NodeDevices:
    """The state with the allocations that a `GPUNode` has on record."""
    return state.restore(
        (
            (Holder(one.namespace, one.pod, one.pod_uid), one.container, one.resource, one.device_ids)
            for one in recorded
        ),
        now,
    )


def _summary(state: NodeDevices) -> GPUSummary:
    products = Counter(device.product.name for device in state.devices)
    held = {uuid for holding in state.holdings for uuid in holding.devices}
    parts = {
        device.uuid: {device.uuid, *(i.uuid for i in device.instances or ())} for device in state.devices
    }
    profiles = [i.profile for device in state.devices for i in device.instances or ()]
    enabled = any(device.mig_enabled for device in state.devices)
    return GPUSummary(
        product=products.most_common(1)[0][0] if products else "",
        gpus=len(state.devices),
        allocated=sum(bool(uuids & held) for uuids in parts.values()),
        unhealthy=sum(bool(state.why_unusable(device)) for device in state.devices),
        mig=(mig.summary(profiles) or "on") if enabled else "off",
    )


def _device(state: NodeDevices, device: Device, now: float) -> GPUDevice:
    reading, reason = state.reading(device, now), state.why_unusable(device)
    return GPUDevice(
        index=device.index,
        uuid=device.uuid,
        product=device.product.name,
        memory_mib=device.product.memory_mib,
        healthy=not reason,
        reason=reason,
        util_percent=reading.util_percent,
        memory_used_mib=reading.memory_used_mib,
        temperature_c=reading.temperature_c,
        power_w=reading.power_w,
        mig_enabled=device.mig_enabled,
        instances=tuple(
            GPUInstance(uuid=i.uuid, profile=i.profile, start=i.start, size=i.size, healthy=not reason)
            for i in device.instances or ()
        ),
    )
