"""Metrics of devices, as the controller sees them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

POOL_DECISION_SECONDS = Histogram(
    "gpufleet_devices_pool_decision_duration_seconds",
    "Time from a snapshot of pools and nodes to a plan.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
POOL_LAST_DECISION = Gauge(
    "gpufleet_devices_pool_last_decision_timestamp_seconds", "When pools were last decided upon."
)
POOL_WRITES = Counter(
    "gpufleet_devices_pool_writes", "Writes of pools that the API server took, by kind.", ["kind"]
)
POOL_WRITE_ERRORS = Counter(
    "gpufleet_devices_pool_write_errors",
    "Writes of pools that were refused, or came too late because the object had changed, by kind.",
    ["kind"],
)
POOL_NODES = Gauge("gpufleet_devices_pool_nodes", "Nodes that a pool alone claims.", ["pool"])
POOL_DRIFTED_NODES = Gauge(
    "gpufleet_devices_pool_drifted_nodes", "Nodes of a pool that are not as it asks.", ["pool"]
)
POOL_CONTESTED_NODES = Gauge(
    "gpufleet_devices_pool_contested_nodes", "Nodes of a pool that another pool claims too.", ["pool"]
)
