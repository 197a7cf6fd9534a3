"""How a GPU should be shared for a workload: whole, cut by MIG, by MPS, or by taking turns.

The rule of thumb: production inference beside others gets MIG, for an instance has memory, bandwidth and
failures of its own; notebooks and development take turns (time-slicing), or run together (MPS) where a memory
limit is known; one big job gets the whole GPU. `advise` is that rule with its exceptions, as two tables: what
a workload would like best, in order (`_wishes`), and what stands against each way (`_objections`). The first
wish without an objection is the advice. A whole GPU has no objections, so there always is one.

A share must hold what the workload needs. An instance has at least 95 % of its part of the memory (9.5 GiB of
10 for 1g.10gb of an A100), and a part by MPS is that much too, for the driver keeps some for itself.
Source: NVIDIA's MIG and MPS guides, k8s-device-plugin, the primer's table (docs/concepts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from gpufleet.fleet.mig import GEOMETRIES, Profile, mig_resource
from gpufleet.fleet.products import Product
from gpufleet.fleet.reasons import Reason

Choice = Literal["whole", "mig", "mps", "time-slicing"]
Purpose = Literal["inference", "training", "notebook", "batch", "dev", "unknown"]
Tenants = Literal["one", "several", "unknown"]

CHOICES: tuple[Choice, ...] = ("whole", "mig", "mps", "time-slicing")

USABLE_PERCENT = 95
MOST_SHARES = 8
"""More than this are never advised; what a GPU of one kind allows may be less."""
USUAL_SHARES = 4
"""How many share a GPU in turns when nobody knows what they need."""


def mps_clients(compute: tuple[int, int]) -> int:
    """How many clients an MPS server takes on a GPU of a compute capability; 0 where it cannot limit them."""
    if compute < (7, 0):
        return 0
    return 48 if compute >= (7, 5) else 16


class WorkloadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a workload. None is "nothing says".

    `gpus` per pod (0: an amount that cannot be read), `together`: its pods or processes exchange data between
    GPUs. Memory is what one pod needs, in MiB or in percent of a GPU; `takes_all`: its engine claims most of
    the memory that it sees when it starts. `bursty`: it is idle most of the time. `mps`: it runs under MPS.
    """

    purpose: Purpose = "unknown"
    production: bool | None = None
    gpus: int = 1
    pods: int = 1
    together: bool = False
    memory_mib: int | None = None
    memory_percent: int | None = None
    takes_all: bool = False
    tenants: Tenants = "unknown"
    latency: bool = False
    bursty: bool | None = None
    mps: bool = True

    def need_mib(self, product: Product) -> int | None:
        """The memory that one pod needs of a product, in MiB."""
        if self.memory_mib is None and self.memory_percent is not None:
            return product.memory_mib * self.memory_percent // 100
        return self.memory_mib


class Weighed(msgspec.Struct, frozen=True):
    """A way that was not chosen, and why."""

    choice: Choice
    reason: Reason


class Advice(msgspec.Struct, frozen=True):
    """How to share. `resource` is what a pod should ask for, `gpus` how many of it; `replicas` of them share
    a GPU (1: nobody). `profile` is set for MIG only.
    """

    choice: Choice
    resource: str
    gpus: int
    replicas: int
    profile: str
    reasons: tuple[Reason, ...]
    weighed: tuple[Weighed, ...]


def advise(facts: WorkloadFacts, product: Product) -> Advice:
    """The best way to share GPUs of a product for a workload; never fails."""
    wishes, why = _wishes(facts, product)
    against = {choice: tuple(_objections(choice, facts, product)) for choice in CHOICES}
    choice = next(one for one in (*wishes, "whole") if not against[one])
    reasons = [why]
    if choice != wishes[0]:
        better = " or ".join(wishes[: wishes.index(choice)])
        reasons.append(Reason("NextBestSharing", f"{better} would suit it, but cannot be used"))
    if choice == "mig":
        profile = _profile(facts, product)
        assert profile is not None
        replicas, name, resource = profile.limit, profile.name, mig_resource(profile.name)
    else:
        replicas, name = _replicas(choice, facts, product), ""
        resource = "nvidia.com/gpu" if choice == "whole" else "nvidia.com/gpu.shared"
    reasons += _sizing(choice, facts, product, name, replicas)
    weighed = tuple(
        Weighed(one, next(iter(against[one]), _not_preferred(one, choice)))
        for one in CHOICES
        if one != choice
    )
    gpus = max(1, facts.gpus) if choice == "whole" else 1
    return Advice(choice, resource, gpus, replicas, name, tuple(reasons), weighed)


def _wishes(facts: WorkloadFacts, product: Product) -> tuple[tuple[Choice, ...], Reason]:
    """The ways that suit a workload, best first, and why the first one does."""
    small = _fits_twice(facts, product)
    if facts.gpus > 1:
        text = f"a pod takes {facts.gpus} GPUs, so it gets them whole"
        return ("whole",), Reason("WholeForSeveralGpus", text)
    if facts.together:
        text = "its pods exchange data between GPUs, which shares of a GPU cannot do"
        return ("whole",), Reason("WholeForSeveralGpus", text)
    match facts.purpose:
        case "inference" if facts.production is not False:
            said = "production inference" if facts.production else "inference, perhaps for production,"
            text = f"{said} needs memory and failures of its own beside others"
            return ("mig", "mps", "whole"), Reason("IsolationForService", text)
        case "training" if not small:
            text = "training fills a GPU for as long as it runs"
            return ("whole",), Reason("WholeForOneJob", text)
        case "training":
            text = "each of these small jobs needs a part of a GPU, evenly, until it ends"
            return ("mig", "mps", "whole"), Reason("PartForSmallJobs", text)
        case "notebook" | "dev" | "inference":
            what = "a notebook" if facts.purpose == "notebook" else "development"
            if facts.tenants == "one" and facts.bursty is False and small:
                text = f"{what} that is always busy runs beside others of its team, each with a memory limit"
                return ("mps", "time-slicing", "whole"), Reason("LimitsForTeam", text)
            text = f"{what} needs a GPU now and then, so several take turns"
            return ("time-slicing", "mps", "whole"), Reason("TurnsForInteractive", text)
        case "batch" if small:
            text = "small jobs that run at the same time fill a GPU that one of them does not"
            return ("mps", "mig", "time-slicing", "whole"), Reason("LimitsForTeam", text)
        case "batch":
            text = "nothing says that a job needs less than a GPU"
            return ("whole",), Reason("WholeForOneJob", text)
        case "unknown" if small:
            text = "it needs a part of a GPU, and nothing says that others may disturb it"
            return ("mig", "mps", "time-slicing", "whole"), Reason("PartForSmallJobs", text)
        case _:
            text = "nothing says what this is for, and a whole GPU is right for everything"
            return ("whole",), Reason("WholeWhenUnsure", text)


def _objections(choice: Choice, facts: WorkloadFacts, product: Product) -> Iterator[Reason]:
    """What stands against a way; nothing ever against a whole GPU."""
    if choice == "whole":
        return
    if facts.gpus > 1 or facts.together:
        yield Reason("SharesCannotTalk", "data goes from GPU to GPU only between whole GPUs", choice)
    if choice == "mig":
        if not product.mig:
            yield Reason("MigUnsupported", f"{product.name} cannot be cut", choice)
        elif _profile(facts, product) is None:
            yield _too_big(choice, facts, product)
        return
    production = facts.purpose == "inference" and facts.production is not False
    if choice == "mps":
        yield from _objections_to_mps(facts, product, production=production)
    elif production:
        text = "a neighbour can take all the memory, and requests wait for its turn to end"
        yield Reason("NoMemoryLimit", text, choice)
    if _shares(choice, facts, product) < 2:
        yield _too_big(choice, facts, product)


def _objections_to_mps(facts: WorkloadFacts, product: Product, *, production: bool) -> Iterator[Reason]:
    if not mps_clients(product.compute):
        yield Reason("MpsUnsupported", f"MPS cannot limit clients on {product.name}", "mps")
    if not facts.mps:
        yield Reason("MpsUnsupported", "the workload uses what MPS does not serve", "mps")
    if facts.tenants == "several" or (production and facts.tenants != "one"):
        text = "a fatal fault of one client ends all of the GPU, whoever they belong to"
        yield Reason("FaultsAreShared", text, "mps")
    if production and facts.need_mib(product) is None:
        yield Reason("MemoryNeedUnknown", "a limit needs to know how much memory it needs", "mps")


def _too_big(choice: Choice, facts: WorkloadFacts, product: Product) -> Reason:
    need = facts.need_mib(product) or 0
    text = f"it needs {need} MiB, which no share of {product.name} has"
    return Reason("NeedsMostOfGpu", text, choice, evidence={"need_mib": need, "gpu_mib": product.memory_mib})


_LESS_SUITED: Mapping[Choice, str] = {
    "whole": "nobody else could use what it leaves idle",
    "mig": "an instance stays taken while it idles, and can only be changed when it is free",
    "mps": "a fatal fault of one client ends all, and processes of different users take turns anyway",
    "time-slicing": "those that are busy at once slow each other down, without a memory limit",
}


def _not_preferred(choice: Choice, chosen: Choice) -> Reason:
    unsure = "it may need all of a GPU; say how much memory it needs"
    return Reason("SharingNotPreferred", unsure if chosen == "whole" else _LESS_SUITED[choice], choice)


def _sizing(
    choice: Choice, facts: WorkloadFacts, product: Product, profile: str, replicas: int
) -> Iterator[Reason]:
    """Why this profile, or this many replicas, and what to mind."""
    need = facts.need_mib(product)
    if choice == "whole":
        gpus = max(1, facts.gpus)
        if need is not None and need > gpus * product.memory_mib:
            text = f"it needs {need} MiB, more than {gpus} GPUs of {product.name} have"
            yield Reason("ExceedsGpuMemory", text, evidence={"need_mib": need, "gpu_mib": product.memory_mib})
        return
    what = profile if choice == "mig" else f"1 of {replicas} parts"
    if need is None:
        text = f"nothing says how much memory it needs: {what} is a first choice, measure and correct it"
        yield Reason("MemoryNeedUnknown", text)
    else:
        text = f"{what} holds the {need} MiB that it needs"
        yield Reason("ShareFitsMemory", text, evidence={"need_mib": need, "replicas": replicas})
    if choice == "mig":
        return
    if choice == "time-slicing":
        yield Reason("NoMemoryLimit", "nothing keeps one from taking the memory of the others", choice)
    if facts.takes_all and facts.memory_percent is None:
        percent = 90 // replicas
        text = f"the engine takes most of the GPU when it starts: limit it to {percent} % of the memory"
        yield Reason("EngineTakesMemory", text, choice, evidence={"percent": percent})


def _usable_mib(product: Product, parts: int, of: int) -> int:
    """The memory of so many parts of a GPU, less what the driver keeps."""
    return product.memory_mib * parts * USABLE_PERCENT // (of * 100)


def _fits_twice(facts: WorkloadFacts, product: Product) -> bool:
    """Whether it is known that two of the workload fit on a GPU."""
    need = facts.need_mib(product)
    return need is not None and 2 * need <= _usable_mib(product, 1, 1)


def _shares(choice: Choice, facts: WorkloadFacts, product: Product) -> int:
    """How many of the workload may share a GPU by MPS or in turns; 0 or 1 when it needs most of it."""
    most = min(MOST_SHARES, mps_clients(product.compute)) if choice == "mps" else MOST_SHARES
    need = facts.need_mib(product)
    if need is None:
        return min(most, USUAL_SHARES)
    return min(most, _usable_mib(product, 1, 1) // max(1, need))


def _replicas(choice: Choice, facts: WorkloadFacts, product: Product) -> int:
    return 1 if choice == "whole" else _shares(choice, facts, product)


def _profile(facts: WorkloadFacts, product: Product) -> Profile | None:
    """The smallest profile that holds the need and of which a GPU has several: with the most compute of its
    memory size where answers are waited for, else with the least. The largest one when the need is unknown.
    """
    if not product.mig:
        return None
    geometry = GEOMETRIES[product.mig]
    need = facts.need_mib(product)
    several = [one for one in geometry.profiles.values() if one.limit > 1 and not one.media]
    if need is None:
        return max(several, key=lambda one: (one.size, one.compute))
    fitting = [one for one in several if _usable_mib(product, one.size, geometry.slots) >= need]
    sign = -1 if facts.latency else 1
    return min(fitting, key=lambda one: (one.size, sign * one.compute), default=None)
