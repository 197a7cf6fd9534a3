"""Simulated nodes with pods on them, for tests of what an exporter says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gpufleet.devices.boards import make_inventory
from gpufleet.devices.clocks import ManualClock
from gpufleet.devices.inventory import Inventory
from gpufleet.devices.simulated_backend import SimulatedBackend
from gpufleet.devices.timeline import SetLoad, Step
from gpufleet.fleet.products import find_product
from gpufleet.kube.gpunode import GPUAllocation

WARM_S = 300.0
"""Time in which a load has brought a simulated GPU to where it takes it."""


class SimulatedNode:
    """GPUs of one product, each cut into `profiles` (at these memory slices), with a clock of their own."""

    def __init__(
        self, name: str, gpus: int = 1, profiles: Mapping[int, str] | None = None, product: str = "h100"
    ) -> None:
        self.name = name
        self.clock = ManualClock()
        found = find_product(product)
        inventory = make_inventory(found, gpus, node=name)
        self.backend = SimulatedBackend(found, inventory, self.clock)
        if profiles is not None:
            for gpu in inventory.gpus:
                self.backend.set_mig_mode(gpu.uuid, on=True)
                for start, profile in profiles.items():
                    made = self.backend.create_gpu_instance(gpu.uuid, profile, start)
                    self.backend.create_compute_instance(gpu.uuid, made)

    @property
    def inventory(self) -> Inventory:
        """What the GPUs are."""
        return self.backend.inventory()

    @property
    def devices(self) -> list[str]:
        """UUIDs of what a pod can hold: MIG devices, and GPUs that are not cut."""
        gpus = self.inventory.gpus
        return [
            uuid
            for gpu in gpus
            for uuid in ([one.compute[0].uuid for one in gpu.instances] if gpu.mig == "on" else [gpu.uuid])
        ]

    def run(self, *steps: Step) -> None:
        """Let these steps happen, and a while pass."""
        self.backend.play(steps)
        self.clock.advance(WARM_S)

    def work(self, util: float = 0.8, memory: float = 0.5) -> None:
        """Keep every GPU, or every GPU instance, busy."""
        self.run(
            *(
                SetLoad(at=0, gpu=gpu.index, instance=instance, util=util, memory=memory)
                for gpu in self.inventory.gpus
                for instance in (tuple(one.id for one in gpu.instances) or (None,))
            )
        )


def allocation(pod: str, *ids: str, namespace: str = "team-a", container: str = "main") -> GPUAllocation:
    """A container that holds device ids."""
    return GPUAllocation(
        namespace=namespace,
        pod=pod,
        pod_uid=f"uid-of-{pod}",
        container=container,
        resource="nvidia.com/gpu",
        devices=tuple(dict.fromkeys(one.partition("::")[0] for one in ids)),
        ids=ids,
    )


def pod_each(devices: Sequence[str]) -> list[GPUAllocation]:
    """A pod for every device."""
    return [allocation(f"pod-{number}", device) for number, device in enumerate(devices)]


def replicas_of(device: str, count: int, pods: int | None = None) -> list[GPUAllocation]:
    """Pods that hold one replica each of a shared device."""
    numbers = range(count if pods is None else pods)
    return [allocation(f"pod-{number}", f"{device}::{number}") for number in numbers]


def parsed(text: str) -> list[Sample]:
    """Every series of a page, as Prometheus reads it; what stands in two places is an error.

    The parser calls counters `..._total`, whatever they are called; here they have their own names.
    """
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(names) == len(set(names))
    series = [
        one if one.name in names else one._replace(name=one.name.removesuffix("_total"))
        for family in text_string_to_metric_families(text)
        for one in family.samples
    ]
    keys = [(one.name, *sorted(one.labels.items())) for one in series]
    assert len(keys) == len(set(keys))
    return series


def of(series: Iterable[Sample], name: str, **labels: str) -> list[Sample]:
    """The series of a metric that have these labels; an empty value stands for an absent label."""
    return [
        one
        for one in series
        if one.name == name and all(one.labels.get(key, "") == value for key, value in labels.items())
    ]


def value(series: Iterable[Sample], name: str, **labels: str) -> float:
    """The value of the only series that has these labels."""
    [one] = of(series, name, **labels)
    return one.value
