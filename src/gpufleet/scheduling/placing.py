"""Placing pods on a trial: which node each one gets, and what must be written before it can be bound."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpufleet.fleet.plans import BindVolume, SelectNode
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.scheduling.trial import Trial
from gpufleet.scheduling.volumes import volume_actions


class Placement(msgspec.Struct, frozen=True):
    """A pod, its node and why; `volumes` is what must be written before it can be bound."""

    pod: Pod
    node: str
    reason: Reason
    volumes: tuple[SelectNode | BindVolume, ...] = ()


def place(pods: Sequence[Pod], trial: Trial) -> list[Placement]:
    """Place as many of `pods` as fit, in order, each on its best node.

    Who needs another of them nearby is tried again after it.
    """
    placements: list[Placement] = []
    waiting = list(pods)
    while waiting:
        left: list[Pod] = []
        for pod in waiting:
            choice = trial.search(pod).choose()
            if choice is None:
                left.append(pod)
            else:
                placements.append(place_on(pod, *choice, trial))
        if len(left) == len(waiting) or all(trial.search(pod).checks_locally for pod in left):
            break
        waiting = left
    return placements


def place_on(pod: Pod, node: str, reason: Reason, trial: Trial) -> Placement:
    """Place one pod on one node."""
    trial.place(pod, node)
    volumes = volume_actions(pod, node, trial.ledger) if pod.shape.claims else ()
    return Placement(pod, node, reason, volumes)


def hold(pod: Pod, node: str, trial: Trial) -> None:
    """Hold room for one pod on one node, and the volumes that it would get there."""
    trial.hold(pod, node)
    if pod.shape.claims:
        volume_actions(pod, node, trial.ledger)
