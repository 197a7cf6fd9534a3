"""The annotation in which the scheduler's pick of devices travels with a binding: `gpufleet.dev/devices`.

Its value is JSON: for each container and resource the UUIDs of GPUs or MIG instances, for example
`{"main": {"nvidia.com/gpu": ["GPU-..."]}}`. It is written with the binding and by nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

DEVICES_ANNOTATION = "gpufleet.dev/devices"

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
    return msgspec.json.encode(devices, order="sorted").decode()
