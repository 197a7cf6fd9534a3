"""The sampler: what it hands on, what it counts, and what it does while the driver hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from tests.unit.exported import SimulatedNode

from gpufleet.devices.sampling import Answers, Sampled, Sampler
from gpufleet.devices.timeline import FailCall, Hang, SetLoad

PATIENCE_S = 20.0


class Watching:
    """A sampler of a simulated node, which is stepped by hand or runs."""

    def __init__(
        self,
        node: SimulatedNode,
        interval_s: float = 15.0,
        shared: Callable[[], Collection[str]] = tuple,
        owner: Callable[[int], str] = str,
    ) -> None:
        self.node, self.taken = node, list[Sampled]()
        self.arrived = threading.Semaphore(0)
        self.answers = Answers("driver", node.clock.now)
        self.sampler = Sampler(
            node.backend,
            self._take,
            self.answers,
            interval_s=interval_s,
            shared=shared,
            owner=owner,
            clock=node.clock.now,
        )

    def _take(self, sampled: Sampled) -> None:
        self.taken.append(sampled)
        self.arrived.release()


def test_a_sample_is_handed_on_and_makes_the_age_zero() -> None:
    watching = Watching(SimulatedNode("node", gpus=2))
    watching.node.clock.advance(7)
    assert watching.answers.now().age_s == 7
    watching.sampler.look()
    assert [one.uuid for one in watching.taken[0].samples] == watching.node.devices
    assert watching.answers.now().age_s == 0
    assert watching.answers.now().duration_s == 0


def test_a_failure_is_counted_by_its_reason_and_the_age_goes_on() -> None:
    watching = Watching(SimulatedNode("node"))
    watching.node.backend.play([FailCall(at=0, call="sample", reason="Timeout", times=2)])
    for _ in range(2):
        watching.node.clock.advance(15)
        watching.sampler.look()
    assert watching.taken == []
    assert watching.answers.now().failures == {"Timeout": 2}
    assert watching.answers.now().age_s == 30


def test_processes_are_asked_for_on_shared_gpus_only_and_summed_by_pod() -> None:
    node = SimulatedNode("node", gpus=2)
    total = node.inventory.gpus[0].memory_mib
    node.run(
        *(
            SetLoad(at=0, gpu=gpu, pid=pid, util=0.1, memory=memory)
            for gpu in (0, 1)
            for pid, memory in ((1, 0.1), (2, 0.2), (3, 0.3), (9, 0.1))
        )
    )
    owners = {1: "a", 2: "a", 3: "b"}
    shared = node.devices[:1]
    watching = Watching(node, shared=lambda: shared, owner=lambda pid: owners.get(pid, ""))
    watching.sampler.look()
    assert watching.taken[0].memory == {
        (shared[0], None): {"a": round(0.1 * total) + round(0.2 * total), "b": round(0.3 * total)}
    }


def test_a_driver_that_cannot_list_processes_is_sampled_all_the_same() -> None:
    node = SimulatedNode("node")
    node.backend.play([FailCall(at=0, call="processes", reason="NotSupported")])
    watching = Watching(node, shared=lambda: node.devices)
    watching.sampler.look()
    assert watching.taken[0].memory == {}
    assert watching.answers.now().failures == {}


def test_a_hanging_driver_lets_the_age_rise_until_it_answers_again() -> None:
    watching = Watching(SimulatedNode("node"), interval_s=0.01)
    clock, backend = watching.node.clock, watching.node.backend
    watching.sampler.start()
    try:
        assert watching.arrived.acquire(timeout=PATIENCE_S)
        backend.play([Hang(at=0, call="sample", seconds=3600)])
        while watching.arrived.acquire(timeout=0.2):
            pass
        stood = len(watching.taken)
        clock.advance(1800)
        assert not watching.arrived.acquire(timeout=0.2)
        assert (len(watching.taken), watching.answers.now().age_s) == (stood, 1800)
        clock.advance(1800)
        assert watching.arrived.acquire(timeout=PATIENCE_S)
        assert watching.answers.now().age_s == 0
    finally:
        backend.close()
        watching.sampler.stop()
