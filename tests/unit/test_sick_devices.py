"""No device of a bad GPU is given out: random lives of simulated GPUs, seen by the observer and offered.

The truth is kept beside the observer, from what the timeline did: a GPU is bad while it is lost or a recovery
action stands, and for `CALM_S` after a serious XID or after the end of a recovery action. A GPU that was lost
and is found was reset, and is sound as soon as no recovery action stands.
"""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from tests.unit.test_device_health import APPLICATION_XIDS

from gpufleet.devices.backend import BackendError
from gpufleet.devices.clocks import ManualClock
from gpufleet.devices.device_health import CALM_S, SERIOUS_XIDS
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.observer import INVENTORY_S, Observed, Observer
from gpufleet.devices.plugin_config import GPU_RESOURCE, PluginConfig, SharedResource, Sharing
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.simulated_backend import SimulatedBackend
from gpufleet.devices.simulated_node import simulated_inventory
from gpufleet.devices.timeline import AddErrors, FailCall, FindGPU, LoseGPU, RaiseXid, SetRecovery, Step
from gpufleet.fleet.products import find_product

SEQUENCES, STEPS = 1000, 25
GPUS = 3
H100 = find_product("h100")
SHARED = Sharing("time-slicing", (SharedResource(GPU_RESOURCE, 4),))


def some_cut() -> Inventory:
    """A node whose first GPU is whole and the others are cut."""
    whole = simulated_inventory(H100, GPUS, node="n", profiles=None)
    cut = simulated_inventory(H100, GPUS, node="n", profiles=("1g.10gb", "1g.10gb", "3g.40gb"))
    return Inventory(whole.driver, whole.nvml, whole.cuda, whole.machine, (whole.gpus[0], *cut.gpus[1:]))


class Life:
    """One node through random events. `trouble` is when the last one of a GPU came or ended, by index;
    `reset` are the GPUs that were lost, and had no trouble of their own since.
    """

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.clock = ManualClock()
        self.backend = SimulatedBackend(H100, some_cut(), self.clock)
        self.config = PluginConfig(mig_strategy="mixed", sharing=SHARED)
        self.node = PluginNode()
        self.observer = Observer(self.backend, self.see, self.clock.now)
        self.observer.look(())
        self.uuids = [gpu.uuid for gpu in self.backend.inventory().gpus]
        self.action = dict.fromkeys(range(GPUS), 0)
        self.lost: set[int] = set()
        self.reset: set[int] = set()
        self.trouble: dict[int, float] = {}

    def see(self, observed: Observed) -> None:
        self.node = self.node.derive(observed.inventory, self.config, observed.health)

    def step(self) -> None:
        """Something happens to some GPUs, some calls fail, time passes, and the observer looks."""
        self.clock.advance(self.draw.choice((0.1, 0.5, 2.0, CALM_S, INVENTORY_S)))
        steps: list[Step] = []
        for index in range(GPUS):
            steps += self.happen(index)
        self.draw.shuffle(steps)
        self.backend.play(steps)
        if self.draw.random() < 0.2:
            call = self.draw.choice(("inventory", "recovery_action"))
            self.backend.play([FailCall(at=0, call=call, times=self.draw.choice((1, 2, GPUS)))])  # type: ignore[arg-type]
        with suppress(BackendError):
            self.observer.look(self.backend.wait(0))

    def happen(self, index: int) -> list[Step]:
        """What happens to a GPU, noted in the truth."""
        chance, instance = self.draw.random(), self.draw.choice((None, 1, 7))
        if chance < 0.12:
            code = self.draw.choice(APPLICATION_XIDS)
            errors = AddErrors(at=0, gpu=index, corrected=3)
            return [RaiseXid(at=0, gpu=index, code=code, instance=instance), errors]
        if chance < 0.22:
            self.troubled(index)
            return [RaiseXid(at=0, gpu=index, code=self.draw.choice([*SERIOUS_XIDS]), instance=instance)]
        if index in self.lost:
            if chance > 0.4:
                return []
            self.lost.discard(index)
            self.trouble.pop(index, None)
            return [FindGPU(at=0, gpu=index)]
        if chance < 0.32:
            self.action[index] = self.draw.randint(1, 7)
            self.troubled(index)
            return [SetRecovery(at=0, gpu=index, action=self.action[index])]
        if chance < 0.38:
            self.lost.add(index)
            self.reset.add(index)
            return [LoseGPU(at=0, gpu=index)]
        if chance < 0.5 and self.action[index]:
            self.action[index] = 0
            if index not in self.reset:
                self.troubled(index)
            return [SetRecovery(at=0, gpu=index, action=0)]
        return []

    def troubled(self, index: int) -> None:
        """A GPU has trouble now, whatever was before."""
        self.trouble[index] = self.clock.now()
        if index not in self.lost:
            self.reset.discard(index)

    def bad(self) -> set[str]:
        """GPUs of which nobody may be given a device now."""
        now = self.clock.now()
        asked = {index for index, action in self.action.items() if action}
        troubled = {index for index, at in self.trouble.items() if now - at < CALM_S}
        return {self.uuids[index] for index in self.lost | asked | troubled}

    def schedulable(self) -> set[str]:
        """GPUs of which a device would be given out."""
        return {one.gpu for found in self.node.offer.resources for one in found.devices if one.healthy}

    def mend(self) -> None:
        """Everything is repaired, and the observer looks while nothing happens."""
        steps: list[Step] = [FindGPU(at=0, gpu=index) for index in range(GPUS)]
        steps += [SetRecovery(at=0, gpu=index, action=0) for index in range(GPUS)]
        self.backend.play(steps)
        for _ in range(STEPS * GPUS):  # as many failing calls may be left
            with suppress(BackendError):
                self.observer.look(self.backend.wait(0))
            self.clock.advance(CALM_S)


@pytest.mark.parametrize("part", range(4))
def test_no_sequence_of_events_and_failing_calls_offers_a_device_of_a_bad_gpu(part: int) -> None:
    for seed in range(part, SEQUENCES, 4):
        life = Life(seed)
        assert life.schedulable() == set(life.uuids)
        for number in range(STEPS):
            life.step()
            assert not life.schedulable() & life.bad(), (seed, number)
        life.mend()
        assert life.schedulable() == set(life.uuids), seed
