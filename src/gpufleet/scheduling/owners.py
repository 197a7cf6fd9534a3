"""Whose scheduler name is free: gpufleet answers for other schedulers while they are absent.

A pod that names a scheduler nobody runs stays pending for ever. Where asked to, gpufleet therefore answers
for every known GPU scheduler's name as long as no leader of that scheduler holds a live Lease, and steps back
when one appears.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from gpufleet.fleet.pods import SCHEDULER_NAME

KNOWN_SCHEDULERS: Mapping[str, frozenset[str]] = {
    # schedulerName of pods           names of the Leases that its leader holds
    "default-scheduler":              frozenset({"kube-scheduler"}),
    "kai-scheduler":                  frozenset({"kai-scheduler", "kai-scheduler-default"}),
    "runai-scheduler":                frozenset({"runai-scheduler", "runai-scheduler-default"}),
    "volcano":                        frozenset({"volcano", "vc-scheduler"}),
    "yunikorn":                       frozenset({"yunikorn", "yunikorn-scheduler"}),
    "scheduler-plugins-scheduler":    frozenset({"scheduler-plugins-scheduler", "sched-plugins-scheduler"}),
    "slurm-bridge-scheduler":         frozenset({"slurm-bridge-scheduler"}),
    "hami-scheduler":                 frozenset({"hami-scheduler"}),
    "koord-scheduler":                frozenset({"koord-scheduler"}),
    "bin-packing-scheduler":          frozenset({"bin-packing-scheduler"}),
    "grove-scheduler":                frozenset({"grove-scheduler"}),
}  # fmt: skip


def answered_names(held: Container[str]) -> frozenset[str]:
    """The scheduler names that gpufleet answers for: its own, and those of whose Leases none is in `held`,
    the names of the Leases that somebody holds and renews.
    """
    free = {name for name, leases in KNOWN_SCHEDULERS.items() if not any(lease in held for lease in leases)}
    return frozenset({SCHEDULER_NAME, *free})
