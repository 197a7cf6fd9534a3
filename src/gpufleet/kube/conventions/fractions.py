"""Fractions of GPUs as KAI's users write them: annotations of the pod.

`gpu-fraction: "0.5"` or `gpu-memory: "2000"` (MiB), either with `gpu-fraction-num-devices: "2"` (a part of
each of so many GPUs) and `gpu-fraction-container-name` (which container gets them; else the first).
Thousandths are exact: a fraction with more digits is rounded up, so nobody gets less than was asked.
Source: KAI-Scheduler, pkg/common/constants and its documentation of GPU sharing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal, InvalidOperation

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.fractions import Fraction

FRACTION = "gpu-fraction"
MEMORY = "gpu-memory"
DEVICES = "gpu-fraction-num-devices"
CONTAINER = "gpu-fraction-container-name"


def fraction_of(annotations: Mapping[str, str], containers: Sequence[str]) -> Fraction | None:
    """The fraction that a pod with these annotations and containers asks for; None when it asks for none."""
    share, memory = annotations.get(FRACTION), annotations.get(MEMORY)
    if share is None and memory is None:
        return None
    if share is not None and memory is not None:
        return Fraction(
            problem=f"the pod has both annotations {FRACTION} and {MEMORY}; leave one of them out"
        )
    devices = _count(annotations.get(DEVICES, "1"))
    if devices is None:
        return Fraction(problem=_wrong(DEVICES, annotations[DEVICES], "a whole number of at least 1"))
    container = annotations.get(CONTAINER, containers[0] if containers else "")
    if container not in containers:
        return Fraction(problem=_wrong(CONTAINER, container, "the name of a container of the pod"))
    if share is not None:
        milli = _milli(share)
        if milli is None:
            return Fraction(problem=_wrong(FRACTION, share, "a number above 0 and below 1, as 0.25"))
        return Fraction(milli, devices=devices, container=container)
    mib = _count(memory or "")
    if mib is None:
        return Fraction(problem=_wrong(MEMORY, memory or "", "a whole number of MiB of at least 1"))
    return Fraction(memory_mib=mib, devices=devices, container=container)


def _milli(text: str) -> int | None:
    try:
        amount = Decimal(text.strip())
    except InvalidOperation:
        return None
    if not amount.is_finite() or not 0 < amount < 1:
        return None
    return min(MILLI - 1, int((amount * MILLI).to_integral_value(ROUND_CEILING)))


def _count(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() and text.isascii() and int(text) > 0 else None


def _wrong(key: str, value: str, wanted: str) -> str:
    return f"the annotation {key} is {value!r}, and not {wanted}"
