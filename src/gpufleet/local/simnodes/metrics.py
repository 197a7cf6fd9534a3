"""What the process of the simulated nodes counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

PHASES = ("Pending", "Running", "Succeeded", "Failed")

NODES = Gauge("gpufleet_simnodes_nodes", "Simulated nodes that are registered.")
PODS = Gauge("gpufleet_simnodes_pods", "Pods on simulated nodes by phase.", ["phase"])
STATUS_PATCHES = Counter("gpufleet_simnodes_status_patches", "Pod statuses written.")
RECORDS = Counter("gpufleet_simnodes_device_records", "GPUNode statuses written.")
REJECTIONS = Counter("gpufleet_simnodes_rejected_pods", "Pods refused at admission by reason.", ["reason"])
STARTS = Counter("gpufleet_simnodes_container_starts", "Containers started by runtime.", ["runtime"])
FAILED_WRITES = Counter(
    "gpufleet_simnodes_failed_writes", "Writes to the API server that failed, by what was written.", ["what"]
)
POD_START = Histogram(
    "gpufleet_simnodes_pod_start_seconds",
    "Seconds from admission of a pod until Running was written.",
    buckets=(0.5, 1, 1.5, 2, 3, 5, 10, 30, 60, 300),
)
