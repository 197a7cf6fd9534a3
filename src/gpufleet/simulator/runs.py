"""One run of the yardstick: a variant of openb, a policy, a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gpufleet.simulator.live import LivePlacer, usual_mix
from gpufleet.simulator.openb import Trace, arrivals
from gpufleet.simulator.placing import PolicyPlacer
from gpufleet.simulator.policies import make_policy
from gpufleet.simulator.published import LIVE
from gpufleet.simulator.replay import Outcome, Placer, replay


class Run(NamedTuple):
    """What a run was and what came out."""

    variant: str
    policy: str
    seed: int
    outcome: Outcome
    seconds: float = 0.0

    def answer(self) -> dict[str, Any]:
        """The run as JSON: percent of all GPUs that are allocated by percent that have arrived, as text."""
        percent = self.outcome.allocation_percent
        return {
            "variant": self.variant,
            "policy": self.policy,
            "seed": self.seed,
            "allocation_percent": {str(load): round(value, 3) for load, value in percent.items()},
            "migrations": self.outcome.migrations,
            "unplaced": self.outcome.unplaced,
            "seconds": round(self.seconds, 3),
        }


def run(trace: Trace, policy: str, seed: int, tell: Callable[[float], None] = lambda share: None) -> Run:
    """Replay a variant with a published policy, or with the scheduler itself. `tell` hears now and then which
    share is done, from 0 to 1. Raises GpufleetError for a policy that does not exist.
    """
    nodes, pods = arrivals(trace, seed)
    placer: Placer
    if policy == LIVE:
        placer = LivePlacer(nodes, pods, usual_mix(trace.pods))
    else:
        placer = PolicyPlacer(nodes, make_policy(policy, nodes, trace.pods, seed))
    outcome = replay(nodes, pods, placer, lambda arrived: tell(arrived / max(1, len(pods))))
    return Run(trace.variant, policy, seed, outcome)


def mean_percent(runs: list[Run]) -> dict[int, float]:
    """Allocated percent by arrived load, averaged over runs, for the loads that all of them have."""
    curves = [one.outcome.allocation_percent for one in runs]
    loads = set(curves[0]).intersection(*curves[1:])
    return {load: sum(curve[load] for curve in curves) / len(curves) for load in sorted(loads)}
