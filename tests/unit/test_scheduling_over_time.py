"""Decisions over time: whoever gets room made for it runs in the end, and nothing goes round in circles.

Virtual time: decide, carry the plan out (binding at once, victims end after a while, whoever owns a victim
makes a new pod), decide again when something ends, until nothing moves.
"""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.random_fleets import broken_rules, examples, fleets, overcommitted, pods_of

from gpufleet.fleet.plans import Bind, Evict, Nominate, Plan, Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide

LIMIT = 60
"""Decisions after which a fleet without arrivals must be at rest."""


class World:
    """A cluster that carries plans out and lets victims end when their time has come."""

    def __init__(self, snapshot: Snapshot, delays: list[int], *, replace: bool) -> None:
        self.snapshot = snapshot
        self.pods: dict[str, Pod] = {p.key: p for p in pods_of(snapshot)}
        self.now = 0
        self.ends: dict[str, int] = {}
        self.beneficiaries: set[str] = set()
        self.seen: set[tuple[object, str]] = set()
        self._delays = delays
        self._replace = replace
        self._made = 0
        for index, p in enumerate(p for p in self.pods.values() if p.terminating):
            self.ends[p.key] = delays[index % len(delays)]

    def decide(self) -> Plan:
        """One decision, carried out; checks what must hold for every single plan."""
        rest = msgspec.structs.asdict(self.snapshot)
        now = snapshot_of(
            tuple(self.snapshot.nodes.values()), tuple(self.pods.values()), budgets=rest["budgets"]
        )
        plan = decide(now, Policy())
        state = frozenset((p.key, p.node, p.nominated_node, p.terminating) for p in self.pods.values())
        for action in plan.actions:
            match action:
                case Bind():
                    assert not self.pods[action.pod.key].node, "bound twice"
                    self._change(action.pod, node=action.node, phase="Running")
                case Nominate():
                    self._change(action.pod, nominated_node=action.node)
                case Evict():
                    assert (state, action.pod.key) not in self.seen, "the same eviction in the same state"
                    self.seen.add((state, action.pod.key))
                    assert not self.pods[action.pod.key].terminating, "evicted twice"
                    self._change(action.pod, terminating=True)
                    self.ends[action.pod.key] = self.now + self._delays[len(self.ends) % len(self._delays)]
                    self.beneficiaries.add(action.beneficiary)
                case Unschedulable():
                    assert action.reasons
        assert not broken_rules(now, plan)
        nodes = {action.node for action in plan.actions if isinstance(action, Bind)}
        machines = [self.snapshot.nodes[name] for name in nodes]
        assert not overcommitted(machines, self.pods.values())
        return plan

    def let_time_pass(self) -> None:
        """Until the next pod is gone; its owner makes another one."""
        self.now = min(self.ends.values())
        for key in sorted(key for key, end in self.ends.items() if end <= self.now):
            gone = self.pods.pop(key)
            del self.ends[key]
            if self._replace:
                self._made += 1
                again = msgspec.structs.replace(
                    gone,
                    name=f"again{self._made}",
                    uid=f"again{self._made}",
                    node="",
                    nominated_node="",
                    phase="Pending",
                    terminating=False,
                    created=100.0 + self.now,
                )
                self.pods[again.key] = again
                # An arrival of higher priority may take what was made for others.
                self.beneficiaries -= {k for k, p in self.pods.items() if p.priority < again.priority}

    def run(self) -> set[str]:
        """Until nothing moves; the pods for whom others were evicted and that do not run then.

        Room for a gang is made for all of it: where it runs, another member may have taken it.
        """
        for _ in range(LIMIT):
            plan = self.decide()
            if any(not isinstance(action, Unschedulable) for action in plan.actions):
                continue
            if not self.ends:
                break
            self.let_time_pass()
        else:
            raise AssertionError(f"still moving after {LIMIT} decisions")
        assert not [p.key for p in self.pods.values() if p.nominated_node and not p.node]
        waiting = {key for key in self.beneficiaries if key in self.pods and not self.pods[key].node}
        return {key for key in waiting if not self._gang_runs(self.pods[key])}

    def _gang_runs(self, p: Pod) -> bool:
        if p.gang is None:
            return False
        return sum(bool(mate.node) for mate in self.pods.values() if mate.gang_key == p.gang_key) >= (
            p.gang.minimum or 0
        )

    def _change(self, p: Pod, **changes: object) -> None:
        self.pods[p.key] = msgspec.structs.replace(self.pods[p.key], **changes)


DELAYS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@examples(100)
@given(fleets(wide=False, gangs=False), DELAYS, st.booleans())
def test_whoever_gets_room_made_for_it_runs_in_the_end(
    snapshot: Snapshot, delays: list[int], replace: bool
) -> None:
    assert not World(snapshot, delays, replace=replace).run()


@examples(150)
@given(fleets(entangled=False), DELAYS, st.booleans())
def test_gangs_and_spread_pods_for_which_room_is_made_run_in_the_end(
    snapshot: Snapshot, delays: list[int], replace: bool
) -> None:
    assert not World(snapshot, delays, replace=replace).run()


@examples(100)
@given(fleets(), DELAYS, st.booleans())
def test_nothing_goes_round_in_circles(snapshot: Snapshot, delays: list[int], replace: bool) -> None:
    """Entangled constraints included, where room that was made for one pod may turn out to suit another."""
    World(snapshot, delays, replace=replace).run()
