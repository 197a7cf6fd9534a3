"""Metrics of all talk with the API server.

Looking a label combination up costs more than counting, so `RequestMetrics` keeps the children it has seen.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "gpufleet_kube_requests_total",
    "Requests to the Kubernetes API server by verb, resource and HTTP code (0: no answer).",
    ["verb", "kind", "code"],
)
DURATION = Histogram(
    "gpufleet_kube_request_duration_seconds",
    "Time until the answer of the Kubernetes API server was read, by verb and resource; no watches.",
    ["verb", "kind"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
RETRIES = Counter(
    "gpufleet_kube_request_retries_total",
    "Requests to the Kubernetes API server that were sent again, by verb and resource.",
    ["verb", "kind"],
)
INFORMER_RELISTS = Counter(
    "gpufleet_informer_relists_total", "Full lists that an informer had to read, by resource.", ["kind"]
)
INFORMER_EVENTS = Counter(
    "gpufleet_informer_events_total",
    "Changes that an informer delivered to its handlers, by resource.",
    ["kind"],
)
INFORMER_SKIPPED = Counter(
    "gpufleet_informer_skipped_objects_total",
    "Objects that an informer left out because they could not be decoded, by resource.",
    ["kind"],
)
INFORMER_HANDLER_FAILURES = Counter(
    "gpufleet_informer_handler_failures_total",
    "Changes that a handler of an informer could not take, by resource: what it keeps may be out of date.",
    ["kind"],
)
EVENTS_DROPPED = Counter(
    "gpufleet_events_dropped_total",
    "Kubernetes Events that were not written: the queue was full or writes failed.",
)
LEADER = Gauge("gpufleet_leader", "1 while this process holds the lease, else 0.", ["lease"])


class RequestMetrics:
    """Counts requests; one instance per client, not thread-safe, sharing the process-wide metrics."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}

    def observe(self, verb: str, kind: str, code: int, seconds: float) -> None:
        """Count one request that was answered with `code` (0: not answered) after `seconds`."""
        counter = self._counters.get((verb, kind, code))
        if counter is None:
            counter = self._counters[verb, kind, code] = REQUESTS.labels(verb, kind, str(code))
        counter.inc()
        if verb != "watch":
            histogram = self._histograms.get((verb, kind))
            if histogram is None:
                histogram = self._histograms[verb, kind] = DURATION.labels(verb, kind)
            histogram.observe(seconds)
