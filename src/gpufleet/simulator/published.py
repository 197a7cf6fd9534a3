"""What was published about the openb trace, by name. Imports nothing, so that `--help` answers at once."""

from __future__ import annotations

VARIANTS = (
    "default",
    "gpushare40", "gpushare60", "gpushare80", "gpushare100",
    "multigpu20", "multigpu30", "multigpu40", "multigpu50",
    "gpuspec10", "gpuspec20", "gpuspec25", "gpuspec33",
    "cpu050", "cpu100", "cpu200", "cpu250",
)  # fmt: skip
"""The variants of the load with published results."""

POLICIES = ("random", "dotprod", "clustering", "packing", "bestfit", "fgd")
"""The policies with published results."""

LIVE = "gpufleet"
"""The scheduler of a real fleet, beside those policies."""

SEEDS = tuple(range(42, 52))
"""The seeds of the published results."""
