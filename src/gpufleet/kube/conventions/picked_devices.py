"""The annotation in which the scheduler's pick of devices travels with a binding: `gpufleet.dev/devices`.

Its value is JSON: for each container and resource the UUIDs of GPUs or MIG instances, for example
`{"main": {"nvidia.com/gpu": ["GPU-..."]}}`, in the order in which a kubelet asks for them. It is written with
the binding and by nobody else (`kube.picks_policy`). With a fraction of GPUs comes a second one,
`gpufleet.dev/visible-devices`: their UUIDs, joined by commas, as the variable of the container has them that
takes its value from there (`kube.fraction_policies`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.fleet.devices import DevicePick
from gpufleet.fleet.fractions import FRACTION_RESOURCE

DEVICES_ANNOTATION = "gpufleet.dev/devices"
VISIBLE_ANNOTATION = "gpufleet.dev/visible-devices"

Devices = Mapping[str, Mapping[str, tuple[str, ...]]]
"""UUIDs by container and resource."""

_DECODER: msgspec.json.Decoder[dict[str, dict[str, tuple[str, ...]]]] = msgspec.json.Decoder(
    dict[str, dict[str, tuple[str, ...]]]
)


def parse_devices(text: str) -> Devices:
    """The devices in an annotation; none where it is not what the scheduler writes."""
    try:
        return _DECODER.decode(text)
    except msgspec.DecodeError:
        return {}


def format_devices(devices: Devices) -> str:
    """The annotation for these devices."""
    return msgspec.json.encode(devices).decode()


def picks_in(annotations: Mapping[str, str]) -> tuple[DevicePick, ...]:
    """The picks among the annotations of a pod; none where they are absent or say nothing."""
    text = annotations.get(DEVICES_ANNOTATION)
    if not text:
        return ()
    return tuple(
        DevicePick(container, resource, devices)
        for container, resources in parse_devices(text).items()
        for resource, devices in resources.items()
    )


def annotated(picks: Iterable[DevicePick], before: Iterable[DevicePick] = ()) -> dict[str, str]:
    """The annotations of a binding with these picks, in place of what somebody wrote `before`; none without
    any.
    """
    devices: dict[str, dict[str, tuple[str, ...]]] = {}
    visible: list[str] = []
    for pick in picks:
        devices.setdefault(pick.container, {})[pick.resource] = pick.devices
        if pick.resource == FRACTION_RESOURCE:
            visible += pick.devices
    found = {DEVICES_ANNOTATION: format_devices(devices)} if devices or any(before) else {}
    return found | {VISIBLE_ANNOTATION: ",".join(visible)} if visible else found
