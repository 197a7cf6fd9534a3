"""The work queue: one worker per key, nothing lost, nothing done twice for one add."""

from __future__ import annotations

import asyncio
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpufleet.kube.workqueue import BASE_DELAY, MAX_DELAY, WorkQueue

keys = st.sampled_from("abc")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def queue_with_clock() -> tuple[WorkQueue[str], Clock]:
    clock = Clock()
    return WorkQueue(clock=clock, rng=random.Random(1)), clock


def drain(queue: WorkQueue[str]) -> list[str]:
    taken = []
    while (key := queue.take()) is not None:
        taken.append(key[0])
    return taken


class QueueMachine(RuleBasedStateMachine):
    """Against a model: for each key, whether work is owed, and whether somebody is at it."""

    @initialize()
    def start(self) -> None:
        self.queue, self.clock = queue_with_clock()
        self.owed: set[str] = set()
        self.working: set[str] = set()
        self.later: dict[str, float] = {}

    @rule(key=keys)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.owed.add(key)

    @rule(key=keys, delay=st.floats(0.1, 5))
    def add_after(self, key: str, delay: float) -> None:
        self.queue.add_after(key, delay)
        self.later[key] = min(self.later.get(key, float("inf")), self.clock.now + delay)

    @rule(seconds=st.floats(0, 5))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def take(self) -> None:
        due = {key for key, when in self.later.items() if when <= self.clock.now}
        self.later = {key: when for key, when in self.later.items() if key not in due}
        self.owed |= due
        taken = self.queue.take()
        free = self.owed - self.working
        if taken is None:
            assert not free
        else:
            assert taken[0] in free
            self.owed.discard(taken[0])
            self.working.add(taken[0])

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.queue.done(key)
        self.working.discard(key)

    @invariant()
    def holds_no_key_twice(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue) <= 3


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_key_added_twice_is_worked_on_once() -> None:
    queue, _ = queue_with_clock()
    for key in "aabab":
        queue.add(key)
    assert drain(queue) == ["a", "b"]


def test_a_key_added_during_its_work_comes_again_when_the_work_is_done() -> None:
    queue, _ = queue_with_clock()
    queue.add("a")
    assert drain(queue) == ["a"]
    queue.add("a")
    queue.add("a")
    assert drain(queue) == []
    queue.done("a")
    assert drain(queue) == ["a"]
    queue.done("a")
    assert drain(queue) == []


def test_of_two_delays_the_earlier_counts() -> None:
    queue, clock = queue_with_clock()
    queue.add_after("a", 10)
    queue.add_after("a", 2)
    queue.add_after("a", 5)
    clock.now += 1.9
    assert drain(queue) == []
    clock.now += 0.2
    assert drain(queue) == ["a"]
    queue.done("a")
    clock.now += 100
    assert drain(queue) == []


def test_backoff_doubles_per_key_up_to_a_bound_and_forgets() -> None:
    queue, _ = queue_with_clock()
    delays = [queue.retry("a") for _ in range(30)]
    for failures, delay in enumerate(delays):
        step = min(MAX_DELAY, BASE_DELAY * 2**failures)
        assert step / 2 <= delay <= step
    assert queue.retry("b") <= BASE_DELAY
    assert (queue.failures("a"), queue.failures("b")) == (30, 1)
    queue.forget("a")
    assert queue.retry("a") <= BASE_DELAY
    assert 1.0 <= queue.retry("c", first=2.0, longest=3.0) <= 2.0
    assert 1.5 <= queue.retry("c", first=2.0, longest=3.0) <= 3.0


async def collect(queue: WorkQueue[str], taken: list[str]) -> None:
    while True:
        key = await queue.get()
        taken.append(key)
        await asyncio.sleep(0)
        queue.done(key)


def test_waiting_workers_wake_for_adds_and_for_delays() -> None:
    async def story() -> list[str]:
        queue: WorkQueue[str] = WorkQueue()
        taken: list[str] = []
        workers = [asyncio.create_task(collect(queue, taken)) for _ in range(3)]
        await asyncio.sleep(0)
        queue.add_after("late", 0.02)
        for key in "abc":
            queue.add(key)
        async with asyncio.timeout(10):
            while len(taken) < 4:
                await asyncio.sleep(0.001)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        return taken

    taken = asyncio.run(story())
    assert sorted(taken) == ["a", "b", "c", "late"]
    assert taken[-1] == "late"
