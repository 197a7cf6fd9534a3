"""Metrics of a node's agent about itself."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

SWAPS = Counter(
    "gpufleet_devices_pick_swaps", "Containers that got other devices than the scheduler had picked."
)
PICKS_KEPT = Counter("gpufleet_devices_picks_kept", "Containers that got the devices that were picked.")
ALLOCATIONS = Counter(
    "gpufleet_devices_allocations", "Grants of devices to containers, by resource.", ["resource"]
)
PARTS = Gauge(
    "gpufleet_devices_part",
    "1 for each part of the node, with its owner and what we do.",
    ["part", "owner", "does"],
)
MIG_CHANGES = Counter(
    "gpufleet_devices_mig_changes", "Changes of MIG layouts that were begun, by outcome.", ["status"]
)
LABEL_WRITES = Counter("gpufleet_devices_label_writes", "Writes of the node's feature labels.")
