"""Fractions of GPUs in a pod's annotations: what is read, and what is said of what cannot be."""

from __future__ import annotations

import pytest

from gpufleet.fleet.fractions import Fraction
from gpufleet.kube.conventions.fractions import fraction_of

CONTAINERS = ("main", "side")


@pytest.mark.parametrize(
    ("annotations", "fraction"),
    [
        ({}, None),
        ({"gpu-fraction": "0.5"}, Fraction(500, container="main")),
        ({"gpu-fraction": " .25 "}, Fraction(250, container="main")),
        ({"gpu-fraction": "0.3333"}, Fraction(334, container="main")),
        ({"gpu-fraction": "0.9999"}, Fraction(999, container="main")),
        ({"gpu-memory": "2000"}, Fraction(memory_mib=2000, container="main")),
        (
            {"gpu-fraction": "0.1", "gpu-fraction-num-devices": "2", "gpu-fraction-container-name": "side"},
            Fraction(100, devices=2, container="side"),
        ),
    ],
)
def test_what_people_write_is_read(annotations: dict[str, str], fraction: Fraction | None) -> None:
    assert fraction_of(annotations, CONTAINERS) == fraction


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"gpu-fraction": "1"}, "gpu-fraction is '1', and not a number above 0 and below 1"),
        ({"gpu-fraction": "half"}, "gpu-fraction is 'half'"),
        ({"gpu-fraction": "NaN"}, "gpu-fraction is 'NaN'"),
        ({"gpu-fraction": "-0.5"}, "gpu-fraction is '-0.5'"),
        ({"gpu-memory": "2Gi"}, "gpu-memory is '2Gi', and not a whole number of MiB"),
        ({"gpu-memory": "0"}, "gpu-memory is '0'"),
        ({"gpu-fraction": "0.5", "gpu-memory": "10"}, "both annotations"),
        ({"gpu-fraction": "0.5", "gpu-fraction-num-devices": "0"}, "gpu-fraction-num-devices is '0'"),
        ({"gpu-fraction": "0.5", "gpu-fraction-container-name": "x"}, "gpu-fraction-container-name is 'x'"),
    ],
)
def test_what_cannot_be_read_says_what_would_be(annotations: dict[str, str], said: str) -> None:
    fraction = fraction_of(annotations, CONTAINERS)
    assert fraction is not None
    assert said in fraction.problem
