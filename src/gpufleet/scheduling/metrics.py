"""Metrics of scheduling."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_DELAYS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

DECISION_SECONDS = Histogram(
    "gpufleet_scheduling_decision_duration_seconds",
    "Time from a snapshot to a plan.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
BINDS = Counter("gpufleet_scheduling_binds", "Pods bound to a node.")
BIND_DELAY_SECONDS = Histogram(
    "gpufleet_scheduling_bind_delay_seconds", "Time from a pod's creation to its binding.", buckets=_DELAYS
)
EVICTIONS = Counter(
    "gpufleet_scheduling_evictions", "Pods evicted so that others of higher priority can run."
)
CUTS = Counter("gpufleet_scheduling_cuts", "GPUs that were asked to be cut by MIG for a pod, or made whole.")
MERGES = Counter(
    "gpufleet_scheduling_merges", "Cut GPUs that were asked to be whole again, as nobody used them."
)
WRITE_ERRORS = Counter(
    "gpufleet_scheduling_write_errors", "Writes of a decision that the API server refused."
)
NOT_RECORDED = Counter(
    "gpufleet_scheduling_decisions_not_recorded",
    "Decisions that --record should have kept and did not, because the disk refused or did not keep up.",
)
PENDING = Gauge("gpufleet_scheduling_pending_pods", "Pods that the last decision could not place.")
LAST_DECISION = Gauge(
    "gpufleet_scheduling_last_decision_timestamp_seconds",
    "When the last decision was taken; time() minus this is its age.",
)
WRITE_QUEUE = Gauge("gpufleet_scheduling_waiting_writes", "Writes of decisions that wait for a writer.")
REPORT_ERRORS = Counter(
    "gpufleet_scheduling_report_errors", "Reports about pending or bound pods that the API server refused."
)
