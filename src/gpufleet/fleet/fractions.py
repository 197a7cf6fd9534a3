"""Fractions of GPUs: pods that share a GPU by what they say they need of it, in milli-GPU.

A pod asks for a part of one GPU, or the same part of several: a number of thousandths, or an amount of memory
which is as many thousandths as it is of the GPU's memory. The parts of a GPU never add up to more than the
whole, and a GPU that carries parts is nobody's whole GPU. Nothing enforces a part on the device: it is a
promise between pods that agreed to share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.gpu_prices import Values, value_of
from gpufleet.fleet.nodes import Node

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

    def on(self, node: Node) -> int | None:
        """Milli-GPU of each GPU of a node; None where the node does not say how much memory its GPUs have."""
        memory = node.labels.get(MEMORY_LABEL, "")
        return self.of(int(memory) if memory.isdecimal() else 0)

    def of(self, memory_mib: int) -> int | None:
        """Milli-GPU of a GPU with so much memory; None where it has to be known and is not (0)."""
        if self.milli:
            return self.milli
        return -(-MILLI * self.memory_mib // memory_mib) if memory_mib else None


class Carried(msgspec.Struct, frozen=True):
    """The GPUs of a node that carry fractions: what is used of each (milli-GPU), and which each pod has.

    A GPU goes by its UUID, or, as long as it is not known which one it will be, by a name of its own. One of
    which nothing is used is still kept for fractions by its agent. `closed` are GPUs that no new pod may use.
    `values` say what idle parts are worth (`fleet.gpu_prices`); without them the fullest GPU is the best.
    """

    used: Mapping[str, int] = {}
    by_pod: Mapping[str, tuple[str, ...]] = {}
    closed: frozenset[str] = frozenset()
    values: Values = ()

    @property
    def gpus(self) -> int:
        """How many GPUs are no longer there for pods that ask for whole ones."""
        return len(self.used.keys() - self.closed)

    def fitting(self, milli: int) -> list[str]:
        """The GPUs with room for a part."""
        most = MILLI - milli
        return [gpu for gpu, used in self.used.items() if used <= most and gpu not in self.closed]

    def with_part(
        self, pod: str, milli: int, count: int, *, known: tuple[str, ...] = (), whole: int = 0
    ) -> Carried:
        """With a pod that has a part of `count` GPUs: the `known` ones, or else the best of those that fit
        and of `whole` ones that carry nothing; more than there are where nothing fits.
        """
        gpus = known if len(known) == count else self._best(pod, milli, count, whole)
        used = dict(self.used)
        for gpu in gpus:
            used[gpu] = used.get(gpu, 0) + milli
        return Carried(used, {**self.by_pod, pod: gpus}, self.closed, self.values)

    def _best(self, pod: str, milli: int, count: int, whole: int) -> tuple[str, ...]:
        idle = {gpu: MILLI - self.used[gpu] for gpu in self.fitting(milli)}
        idle |= {f"{pod}#{number}": MILLI for number in range(min(count, whole))}
        chosen = best_parts([(free, gpu) for gpu, free in idle.items()], milli, count, self.values)
        new = (f"{pod}#{number}" for number in range(min(count, whole), count))
        return (*(gpu for _, gpu in chosen), *(next(new) for _ in range(count - len(chosen))))


NOTHING_CARRIED = Carried()


def best_parts(
    idle: Iterable[tuple[int, str]], milli: int, count: int, values: Values
) -> list[tuple[int, str]]:
    """Of GPUs, each with its idle milli-GPU (enough) and a name, those that lose least of their value by a
    part of `milli`; then the fullest, then the first by name.
    """
    if not values:
        return sorted(idle)[:count]
    worth = sorted((value_of(values, free) - value_of(values, free - milli), free, gpu) for free, gpu in idle)
    return [(free, gpu) for _, free, gpu in worth[:count]]
