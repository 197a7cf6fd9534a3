"""The GPUs of a simulated node with the agent's own code on top of them.

What the node offers, how sick a GPU is, what its labels and its `GPUNode` say comes from the modules that the
agent of a real node uses; only the backend is simulated, and nothing here waits. Who holds devices is the
simulated kubelet's affair; here it makes GPUs busy.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from msgspec.structs import replace

from gpufleet.devices import node_report
from gpufleet.devices.backend import Sample
from gpufleet.devices.boards import make_inventory
from gpufleet.devices.clocks import Clock
from gpufleet.devices.device_health import SERIOUS_XIDS, Health
from gpufleet.devices.feature_labels import feature_labels
from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.mig_changes import MigTarget, plan_change
from gpufleet.devices.mig_manager import carry_out
from gpufleet.devices.mig_work import Work, wished_work
from gpufleet.devices.observer import Observed, Observer
from gpufleet.devices.partitions import with_compute_instance, with_gpu_instance
from gpufleet.devices.picks import Picks
from gpufleet.devices.plugin_config import PluginConfig
from gpufleet.devices.plugin_config_source import with_sharing
from gpufleet.devices.plugin_node import PluginNode
from gpufleet.devices.preferred_allocation import topology
from gpufleet.devices.resources import gpu_resources
from gpufleet.devices.simulated_backend import SimulatedBackend
from gpufleet.devices.timeline import RaiseXid, SetLoad, SetRecovery, Step
from gpufleet.fleet import mig
from gpufleet.fleet.devices import REPLICA_SEPARATOR, device_of
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.products import Product
from gpufleet.kube.gpunode import GPUAllocation, GPUDevice, GPUNodeDesired, GPUNodeStatus, GPUResource

_RESET = 1
_SHARE_LOAD, _MEMORY = 0.4, 0.86
_XID = re.compile(r"Xid(\d+)")

_Unit = tuple[int, int | None, int]
"""A GPU by index, a GPU instance by id (None: the whole GPU), and the number of the process on it."""


def simulated_inventory(
    product: Product | None, count: int, *, node: str, profiles: Collection[str] | None
) -> Inventory:
    """The GPUs of a node, each cut into `profiles` (None: MIG mode off); no GPUs without a product.

    Uuids follow from the node's name. Raises GpufleetError for profiles that do not fit on the product.
    """
    if product is None:
        return Inventory()
    found = make_inventory(product, count, node=node, machine="gpufleet-simulated")
    if profiles is None:
        return found
    placements = mig.cut(mig.geometry_of(product), tuple(profiles))
    return replace(found, gpus=tuple(_cut(gpu, placements) for gpu in found.gpus))


def _cut(gpu: GPU, placements: Iterable[mig.Placement]) -> GPU:
    gpu = replace(gpu, mig="on")
    for placement in placements:
        gpu, instance = with_gpu_instance(gpu, placement.profile, placement.start)
        gpu, _ = with_compute_instance(gpu, instance)
    return gpu


def gpu_labels(inventory: Inventory, config: PluginConfig) -> dict[str, str]:
    """The labels that describe GPUs, with the one by which NVIDIA's operator knows a node of theirs."""
    if not inventory.gpus:
        return {}
    return {"nvidia.com/gpu.present": "true", **feature_labels(inventory, config)}


class SimulatedGPUs:
    """All GPUs of one simulated node. `look` takes in what has happened to them since."""

    def __init__(
        self, product: Product | None, inventory: Inventory, config: PluginConfig, clock: Clock
    ) -> None:
        self.config = self._own_config = config
        self.mig_problem = ""
        self.picks = Picks()
        self.node = PluginNode()
        self._quarantined: frozenset[str] = frozenset()
        self._carrying: frozenset[str] = frozenset()
        self._desired = GPUNodeDesired()
        self._faults: Mapping[int, str] = {}
        self._loads: dict[_Unit, float] = {}
        self._samples: tuple[Sample, ...] = ()
        self._changed = False
        self._observed = Observed(inventory, {}, clock.now())
        self.backend: SimulatedBackend | None = None
        if product is not None:
            self.backend = SimulatedBackend(product, inventory, clock)
            self.node = replace(self.node, topology=topology(inventory, self.backend.links()))
            self._observer = Observer(self.backend, self._see, clock.now)
            self.look()
            self.measure()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The readings that were measured last."""
        return self._samples

    @property
    def inventory(self) -> Inventory:
        """What the GPUs are, as last seen."""
        return self._observed.inventory

    @property
    def resources(self) -> tuple[GPUResource, ...]:
        """Every resource with its number of devices, by name."""
        return gpu_resources(self.node.offer, self.config.shared_policy)

    @property
    def healing(self) -> bool:
        """Whether a GPU is still called sick although nothing is wrong with it any more: look again soon."""
        broken = {gpu.uuid for gpu in self.inventory.gpus if gpu.index in self._faults}
        return not broken.issuperset(self._observed.health)

    def labels(self) -> dict[str, str]:
        """The labels that describe the GPUs as they are now."""
        return gpu_labels(self.inventory, self.config)

    def look(self) -> bool:
        """Take in what has happened to the GPUs; whether what the node offers or says of them changed."""
        self._changed = False
        if self.backend is not None:
            self._observer.look(self.backend.wait(0.0))
        return self._changed

    def obey(self, faults: Mapping[int, str], quarantined: Iterable[str]) -> bool:
        """Break GPUs by index (`Xid79`, or any other reason) and repair those that are not named any more;
        give no device of the quarantined ones to new pods. Whether what the node says of them changed.
        """
        before = self._quarantined
        self._quarantined = frozenset(quarantined)
        if self.backend is not None and faults != self._faults:
            self.look()
            now = self.backend.elapsed()
            steps: list[Step] = []
            for gpu in self.inventory.gpus:
                if faults.get(gpu.index) != self._faults.get(gpu.index):
                    steps += _fault(gpu.index, faults.get(gpu.index), now)
            self._faults = dict(faults)
            self.backend.play(steps)
        changed = self.look()
        if self._quarantined != before:
            self._derive()
            changed = True
        return changed

    def carry(self, gpus: frozenset[str]) -> None:
        """Give nobody these GPUs whole from now on: they carry fractions."""
        if gpus != self._carrying:
            self._carrying = gpus
            self._derive()

    def recall(self, recorded: Iterable[GPUDevice]) -> None:
        """Cut the GPUs as a record says: a driver outlives its agent, a simulation does not."""
        if self.backend is None:
            return
        targets = {
            one.uuid: MigTarget(
                on=one.mig_enabled,
                placements=tuple(mig.Placement(i.start, i.size, i.profile) for i in one.instances),
            )
            for one in recorded
            if self.inventory.gpu(one.uuid) is not None
        }
        for uuid, target in targets.items():
            try:
                change = plan_change(self.inventory, {uuid: target}, busy=frozenset(), may_switch=True)
            except GpufleetError:
                continue  # a record of another product
            carry_out(self.backend, change, lambda _: True)
        self._observer.refresh()
        self.look()

    def ask(self, desired: GPUNodeDesired) -> bool:
        """Share and cut the GPUs as the controller asks from now on; whether what is offered changed. What is
        to be cut waits for `cut`.
        """
        self._desired = desired
        before = self.config
        self._derive()
        return self.config != before

    def to_cut(self, busy: frozenset[str]) -> tuple[Work, ...]:
        """What the controller asks to be cut and is not; `busy` are uuids that containers hold."""
        if self.backend is None:
            return ()
        return wished_work(self.inventory, self._desired, busy)

    def cut(self, busy: frozenset[str]) -> bool:
        """Cut the GPUs as the controller asks, as far as `busy` allows; whether anything changed."""
        problems = []
        for work in self.to_cut(busy):
            assert self.backend is not None
            if work.problem is not None:
                problems.append(work.problem.message)
                continue
            outcome = carry_out(self.backend, work.change, lambda uuid: uuid not in busy)
            if outcome.status != "done":
                problems += [reason.message for reason in outcome.reasons]
        before, self.mig_problem = self.mig_problem, "; ".join(problems)
        self._observer.refresh()
        return self.look() or self.mig_problem != before

    def occupy(self, ids: Iterable[str]) -> None:
        """Make the GPUs and instances behind these device ids busy, and all others idle."""
        if self.backend is None:
            return
        wanted = self._wanted(ids)
        now = self.backend.elapsed()
        steps = [_load(unit, wanted.get(unit, 0.0), now) for unit in {**self._loads, **wanted}
                 if wanted.get(unit, 0.0) != self._loads.get(unit, 0.0)]  # fmt: skip
        self._loads = wanted
        if steps:
            self.backend.play(steps)
        busy = frozenset(self.inventory.gpus[index].uuid for index, _, _ in wanted)
        self.node = replace(self.node, busy=busy)

    def measure(self) -> bool:
        """Read the sensors; whether a reading moved by more than people care about."""
        before = {one.uuid: one.values for one in self._samples if one.instance is None}
        self._samples = self.backend.sample() if self.backend is not None else ()
        return any(
            node_report.moved(before.get(one.uuid, {}), one.values)
            for one in self._samples
            if one.instance is None
        )

    def status(self, allocations: Iterable[GPUAllocation]) -> GPUNodeStatus:
        """Summary, devices, resources and allocations, with the readings that were measured last."""
        return node_report.node_status(
            self.inventory,
            self._named(self._observed.health),
            self._quarantined,
            self.resources,
            allocations,
            self._samples,
            self.node.topology,
        )

    def _see(self, observed: Observed) -> None:
        self._observed = observed
        self._derive()
        self._changed = True

    def _derive(self) -> None:
        sick = self._quarantined | self._observed.health.keys()
        profiles = self._observed.inventory.profiles
        self.config = with_sharing(self._own_config, self._desired.sharing, profiles)
        self.node = self.node.derive(self._observed.inventory, self.config, sick, carrying=self._carrying)

    def _named(self, health: Health) -> Health:
        """The illnesses, those of GPUs that somebody broke for another reason than an XID by that reason."""
        names = {
            gpu.uuid: self._faults[gpu.index]
            for gpu in self.inventory.gpus
            if gpu.index in self._faults and not _XID.fullmatch(self._faults[gpu.index])
        }
        return {
            uuid: replace(illness, reason=names.get(uuid, illness.reason)) for uuid, illness in health.items()
        }

    def _wanted(self, ids: Iterable[str]) -> dict[_Unit, float]:
        units: dict[str, tuple[int, int | None]] = {}
        for gpu in self.inventory.gpus:
            units[gpu.uuid] = (gpu.index, None)
            for instance in gpu.instances:
                for compute in instance.compute:
                    units[compute.uuid] = (gpu.index, instance.id)
        found: dict[_Unit, float] = {}
        for one in ids:
            unit = units.get(device_of(one))
            if unit is not None:
                number = one.partition(REPLICA_SEPARATOR)[2]
                process = int(number) + 1 if number else 0
                found[*unit, process] = _SHARE_LOAD if number else 1.0
        return found


def fault_problem(reason: str) -> str:
    """Why breaking a GPU for this reason makes it not sick; empty when it does."""
    match = _XID.fullmatch(reason)
    if match and int(match[1]) not in SERIOUS_XIDS:
        return f"Xid {match[1]} makes no GPU sick: a program causes it, or the GPU heals it by itself"
    return ""


def _fault(index: int, reason: str | None, now: float) -> list[Step]:
    if reason is None or fault_problem(reason):
        return [SetRecovery(at=now, gpu=index, action=0)]
    match = _XID.fullmatch(reason)
    event: list[Step] = [RaiseXid(at=now, gpu=index, code=int(match[1]))] if match else []
    return [*event, SetRecovery(at=now, gpu=index, action=_RESET)]


def _load(unit: _Unit, level: float, now: float) -> Step:
    index, instance, process = unit
    return SetLoad(at=now, gpu=index, instance=instance, util=level, memory=level * _MEMORY, pid=process)
