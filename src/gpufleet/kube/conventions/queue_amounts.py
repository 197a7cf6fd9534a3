"""Amounts as vendors write them in queue objects: lists of resources, and plain numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.pods import is_gpu_resource
from gpufleet.fleet.quantities import parse_quantity
from gpufleet.fleet.queues import milli_gpus

ResourceList = Mapping[str, int | str]
"""Quantities by the name of the resource."""

Stated = tuple[int | None, int | None, int | None]
"""Milli-GPU, millicores and bytes; None for what a list does not mention."""

_SECONDS = {
    "h": Fraction(3600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
}
_STEP = re.compile(r"(\d+(?:\.\d+)?)(h|ms|us|m|s)")


def stated(resources: ResourceList) -> Stated:
    """What a list of resources says. Whatever stands for GPUs counts as GPUs; parts of a unit are cut off.

    Raises GpufleetError (BadQuantity).
    """
    gpus = [
        int(parse_quantity(str(quantity)) * milli_gpus(name, 1))
        for name, quantity in resources.items()
        if is_gpu_resource(name)
    ]
    cpu, memory = resources.get("cpu"), resources.get("memory")
    return (
        sum(gpus) if gpus else None,
        None if cpu is None else int(parse_quantity(str(cpu)) * 1000),
        None if memory is None else int(parse_quantity(str(memory))),
    )


def exactly(number: float, scale: int) -> int:
    """A number as somebody wrote it, times `scale`, without what a float adds: 0.3 is three tenths."""
    return int(Fraction(repr(number)) * scale)


def seconds_of(duration: str) -> int:
    """Whole seconds of a duration as Go writes it, `1h30m`. Raises GpufleetError (BadQuantity)."""
    steps = _STEP.findall(duration)
    if not steps or "".join(number + unit for number, unit in steps) != duration:
        raise GpufleetError(
            reason="BadQuantity",
            message=f"{duration!r} is not a duration",
            hint="write hours, minutes and seconds, for example 1h30m",
        )
    return int(sum(Fraction(number) * _SECONDS[unit] for number, unit in steps))
