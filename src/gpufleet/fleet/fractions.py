"""Fractions of GPUs: pods that share a GPU by what they say they need of it, in milli-GPU.

A pod asks for a part of one GPU, or the same part of several: a number of thousandths, or an amount of memory
which is as many thousandths as it is of the GPU's memory. The parts of a GPU never add up to more than the
whole, and a GPU that carries parts is nobody's whole GPU. Nothing enforces a part on the device: it is a
promise between pods that agreed to share.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpufleet.fleet.nodes import Node

WHOLE_MILLI = 1000
"""A whole GPU in milli-GPU."""
FRACTION_RESOURCE = "gpufleet.dev/gpu-fraction"
"""Stands for parts of GPUs where a resource is named; no node offers it under this name."""
MEMORY_LABEL = "nvidia.com/gpu.memory"


class Fraction(msgspec.Struct, frozen=True):
    """A part of each of `devices` GPUs: `milli` of it, or `memory_mib` of its memory (then `milli` is 0).

    `container` is the one that gets them; empty: the first. `problem` says what the pod states that cannot be
    understood.
    """

    milli: int = 0
    memory_mib: int = 0
    devices: int = 1
    container: str = ""
    problem: str = ""

    @property
    def text(self) -> str:
        """As people say it."""
        amount = f"{self.milli} milli-GPU" if self.milli else f"{self.memory_mib} MiB of GPU memory"
        return amount if self.devices == 1 else f"{amount} on each of {self.devices} GPUs"

    def on(self, node: Node) -> int | None:
        """Milli-GPU of each GPU of a node; None where the node does not say how much memory its GPUs have."""
        memory = node.labels.get(MEMORY_LABEL, "")
        return self.of(int(memory) if memory.isdecimal() else 0)

    def of(self, memory_mib: int) -> int | None:
        """Milli-GPU of a GPU with so much memory; None where it has to be known and is not (0)."""
        if self.milli:
            return self.milli
        return -(-WHOLE_MILLI * self.memory_mib // memory_mib) if memory_mib else None


class Carried(msgspec.Struct, frozen=True):
    """The GPUs of a node that carry fractions: what is used of each (milli-GPU), and which each pod has.

    A GPU goes by its UUID, or, as long as it is not known which one it will be, by a name of its own. One of
    which nothing is used is still kept for fractions by its agent. `closed` are GPUs that no new pod may use.
    """

    used: Mapping[str, int] = {}
    by_pod: Mapping[str, tuple[str, ...]] = {}
    closed: frozenset[str] = frozenset()

    @property
    def gpus(self) -> int:
        """How many GPUs are no longer there for pods that ask for whole ones."""
        return len(self.used.keys() - self.closed)

    def fitting(self, milli: int) -> list[str]:
        """The GPUs with room for a part, the fullest first."""
        most = WHOLE_MILLI - milli
        fitting = (gpu for gpu, used in self.used.items() if used <= most and gpu not in self.closed)
        return sorted(fitting, key=self._fullest)

    def with_part(self, pod: str, milli: int, count: int, gpus: tuple[str, ...] = ()) -> Carried:
        """With a pod that has a part of `count` GPUs: of `gpus`, if that is known, or else of the fullest
        that fit, then of others that carried nothing.
        """
        if len(gpus) != count:
            gpus = tuple(self.fitting(milli)[:count])
            gpus += tuple(f"{pod}#{number}" for number in range(count - len(gpus)))
        used = dict(self.used)
        for gpu in gpus:
            used[gpu] = used.get(gpu, 0) + milli
        return Carried(used, {**self.by_pod, pod: gpus}, self.closed)

    def _fullest(self, gpu: str) -> tuple[int, str]:
        return -self.used[gpu], gpu


NOTHING_CARRIED = Carried()
