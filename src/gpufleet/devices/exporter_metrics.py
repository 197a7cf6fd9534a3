"""Metrics of ours about the GPUs of one node.

They are declared here for their names, labels and help. The exporter writes them into the page of the node
that they are about (`exporter_text`), and nowhere else: one process may serve many nodes, and a series that
joins others must not come from two endpoints.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge

DEVICE = ("gpu", "UUID", "GPU_I_ID", "GPU_I_PROFILE")
"""Labels that name a GPU or GPU instance, as DCGM exporter has them; the last two are absent for a GPU."""

HOLDER = ("namespace", "pod", "container")
"""Labels that name who holds it; absent where nobody does."""

GPU_INFO = Gauge(
    "gpufleet_gpu_info",
    "1 for each GPU and GPU instance, for every container that holds it; joins others on (UUID, GPU_I_ID).",
    ["node", *DEVICE, "device_uuid", "product", "driver", *HOLDER],
)
GPU_SHARE = Gauge(
    "gpufleet_gpu_share_ratio",
    "Part of a GPU that a container holds: its part of the replicas, or of the compute slices under MIG.",
    ["node", *DEVICE, *HOLDER],
)
UNMAPPED = Gauge(
    "gpufleet_unmapped_devices",
    "Devices that the kubelet has given to containers and the driver does not list: their use is unknown.",
    ["node"],
)
UNAVAILABLE = Gauge(
    "gpufleet_metric_unavailable",
    "GPUs and GPU instances that lack a metric (* is all of them), by its classic name and the reason.",
    ["node", "field", "reason"],
)
SAMPLE_AGE = Gauge(
    "gpufleet_sample_age_seconds",
    "Time since the driver (source driver) or the kubelet (source kubelet) answered last.",
    ["node", "source"],
)
SAMPLE_SECONDS = Gauge(
    "gpufleet_sample_duration_seconds",
    "How long the driver (source driver) or the kubelet (source kubelet) took to answer last.",
    ["node", "source"],
)
SAMPLE_FAILURES = Counter(
    "gpufleet_sample_failures",
    "Questions that the driver or the kubelet did not answer, by source and reason.",
    ["node", "source", "reason"],
)
