"""Waiting for a fake NVML: events, calls that hang, and the observer that makes GPUs sick and well."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial

import pynvml
import pytest
from tests.fakenvml.machine import FakeMachine
from tests.node.nvml_nodes import (
    BOUND_S,
    NvmlNode,
    cut_h100,
    cut_node,
    in_background,
    misbehave,
    until,
    whole_h100,
    whole_node,
)

from gpufleet.devices.backend import BackendError, Event
from gpufleet.devices.clocks import ManualClock
from gpufleet.devices.device_health import CALM_S
from gpufleet.devices.nvml import NvmlBackend
from gpufleet.devices.observer import Observed, Observer


def test_what_happened_before_anybody_waited_is_past(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("h100", 1))
    nvml_node.change(lambda machine: machine.xid(0, 48))
    backend = nvml_node.backend()
    assert backend.wait(0) == ()


def test_an_event_ends_a_wait(nvml_node: NvmlNode) -> None:
    backend = cut_h100(nvml_node)
    backend.wait(0)
    found: list[tuple[Event, ...]] = []
    with in_background(lambda: found.append(backend.wait(3 * BOUND_S))):
        nvml_node.change(lambda machine: machine.xid(0, 43, 5, 0))
    assert found == [(Event("xid", backend.inventory().gpus[0].uuid, 43, 5, 0),)]


def test_a_driver_that_will_not_wait_for_a_lost_gpu_does_not_silence_the_others(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node)
    backend.wait(0)
    misbehave(nvml_node, "nvmlEventSetWait_v2", pynvml.NVML_ERROR_GPU_IS_LOST, times=1)
    assert backend.wait(0.01) == ()
    backend.wait(0)
    nvml_node.change(lambda machine: machine.lose(0).xid(1, 48))
    events = backend.wait(BOUND_S)
    assert {(event.kind, event.uuid) for event in events} >= {("xid", backend.inventory().gpus[1].uuid)}


def test_closing_ends_a_wait(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node)
    with in_background(lambda: backend.wait(100 * BOUND_S)):
        backend.close()


def test_a_call_that_hangs_holds_up_nobody_else(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node)
    gpu = backend.inventory().gpus[0].uuid
    backend.sample()
    backend.wait(0)
    nvml_node.change(lambda machine: machine.hang("nvmlDeviceGetTemperature", 3600))
    with in_background(backend.sample) as sampling:
        nvml_node.change(lambda machine: machine.xid(0, 48))
        assert backend.wait(BOUND_S) == (Event("xid", gpu, 48),)
        assert len(backend.inventory().gpus) == 2
        assert backend.processes(gpu) == ()
        assert sampling.is_alive()
        nvml_node.change(FakeMachine.calm)


def test_closing_does_not_wait_for_a_driver_that_hangs(nvml_node: NvmlNode) -> None:
    backend = whole_h100(nvml_node)
    nvml_node.change(lambda machine: machine.hang("nvmlEventSetWait_v2", 3600))
    with in_background(partial(_wait_in_vain, backend)):
        until(backend._events._waiting.locked)
        backend.close()
        nvml_node.change(FakeMachine.calm)


def _wait_in_vain(backend: NvmlBackend) -> None:
    with suppress(BackendError):
        backend.wait(BOUND_S)


class Watch:
    """An observer of a node's GPUs, whose clock stands still between rounds."""

    def __init__(self, node: NvmlNode) -> None:
        self.clock = ManualClock()
        self.backend = node.backend(self.clock.now)
        self.changes: list[Observed] = []
        self.observer = Observer(self.backend, self.changes.append, self.clock.now)
        self.round()

    def round(self, seconds: float = 0.0) -> dict[str, str]:
        """Time passes, and the observer looks once; what is sick, and why."""
        self.clock.advance(seconds)
        self.observer.look(self.backend.wait(0.1))
        assert self.observer.last is not None
        return {uuid: illness.reason for uuid, illness in self.observer.last.health.items()}


def test_a_serious_xid_makes_a_gpu_sick_until_it_was_reset(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("h100", 2))
    watch = Watch(nvml_node)
    sick = watch.backend.inventory().gpus[1].uuid
    nvml_node.change(lambda machine: machine.xid(1, 48).recover(1, 1))
    assert watch.round(1) == {sick: "Xid48"}
    assert watch.round(2 * CALM_S) == {sick: "Xid48"}
    nvml_node.change(lambda machine: machine.reset(1))
    assert watch.round(1) == {sick: "Xid48"}
    assert watch.round(2 * CALM_S) == {}
    assert len(watch.changes) == 3


def test_an_xid_of_one_instance_makes_its_gpu_sick(nvml_node: NvmlNode) -> None:
    nvml_node.show(*cut_node("h100", 2))
    watch = Watch(nvml_node)
    nvml_node.change(lambda machine: machine.xid(0, 95, 5, 0))
    assert watch.round(1) == {watch.backend.inventory().gpus[0].uuid: "Xid95"}


def test_an_xid_that_a_program_causes_makes_nothing_sick(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("h100", 1))
    watch = Watch(nvml_node)
    nvml_node.change(lambda machine: machine.xid(0, 13))
    assert watch.round(1) == {}


@pytest.mark.parametrize("old", [False, True])
def test_a_gpu_that_fell_off_the_bus_is_well_when_it_is_back(nvml_node: NvmlNode, old: bool) -> None:
    nvml_node.show(*whole_node("h100", 2))
    if old:
        nvml_node.change(lambda machine: machine.gpu(0, recovery_action=None))
    watch = Watch(nvml_node)
    lost = watch.backend.inventory().gpus[0].uuid
    nvml_node.change(lambda machine: machine.xid(0, 79).lose(0))
    assert watch.round(1) == {lost: "Xid79"}
    assert watch.round(2 * CALM_S) == {lost: "Xid79"}
    assert watch.observer.last is not None
    assert watch.observer.last.inventory.gpus[0].lost
    nvml_node.change(lambda machine: machine.reset(0))
    assert watch.round(1) == {}
    assert watch.round(1) == {}
    assert not watch.observer.last.inventory.gpus[0].lost


def test_a_driver_that_hangs_leaves_the_last_view_and_a_growing_age(nvml_node: NvmlNode) -> None:
    nvml_node.show(*whole_node("h100", 1))
    backend = nvml_node.backend()
    observer = Observer(backend, lambda _: None)
    observer.start()
    until(lambda: observer.last is not None)
    nvml_node.change(lambda machine: machine.hang("nvmlDeviceGetHandleByIndex_v2", 3600))
    until(lambda: observer.last is not None and time.monotonic() - observer.last.at > 1.2)
    assert len(observer.last.inventory.gpus if observer.last else ()) == 1
    nvml_node.change(FakeMachine.calm)
    until(lambda: observer.last is not None and time.monotonic() - observer.last.at < 1.0)
    observer.stop(BOUND_S)
