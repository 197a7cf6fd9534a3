"""Times of the Kubernetes API: RFC 3339 strings on the wire, seconds since the epoch inside.

`metav1.Time` has whole seconds, `metav1.MicroTime` (leases, events) six decimals; both are UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime


def parse_time(text: str | None) -> float:
    """Seconds since the epoch of an RFC 3339 string; 0.0 for None and for an empty string."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def format_time(seconds: float) -> str:
    """A `metav1.Time`: whole seconds, cut off, not rounded."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(seconds: float) -> str:
    """A `metav1.MicroTime`: exactly six decimals, which the API server insists on."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
