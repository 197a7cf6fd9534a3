"""Slinky's slurm-bridge: annotations with which pods and jobs speak to Slurm.

slurm-bridge makes one Slurm job of a Job, a PodGroup or an owner that it knows, and gives each pod a node, so
`min-nodes` of a Job is its number of pods. Account, QoS, partition and Slurm's own priority are not read:
they mean something in Slurm's tree only.
Source: slurm-bridge docs/workload.md.
"""

from __future__ import annotations

from gpufleet.fleet.gangs import Gang
from gpufleet.kube.conventions.stated import filled, number_in, size_in
from gpufleet.kube.objects.meta import ObjectMeta

RULE = "Slurm min-nodes"
PREFIX = "slurmjob.slinky.slurm.net/"
MIN_NODES, MAX_NODES = PREFIX + "min-nodes", PREFIX + "max-nodes"


def by_nodes(meta: ObjectMeta, key: str) -> Gang:
    """The gang of a Job that asks for nodes."""
    minimum, problem = size_in(meta.annotations[MIN_NODES], MIN_NODES)
    return Gang(key, RULE, minimum, problem, maximum=number_in(meta.annotations.get(MAX_NODES)))


def with_labels(gang: Gang, meta: ObjectMeta) -> Gang:
    """What the annotations add to a gang: the time limit, which is in minutes."""
    minutes = number_in(meta.annotations.get(PREFIX + "timelimit"))
    return filled(gang, time_limit_s=60 * minutes if minutes else None)
