"""How a GPU should be shared: the primer's three cases, many more, and what holds for every workload."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.fleet.mig import GEOMETRIES
from gpufleet.fleet.products import PRODUCTS, Product, find_product
from gpufleet.fleet.reasons import CODES
from gpufleet.fleet.sharing import CHOICES, MOST_SHARES, WorkloadFacts, advise, mps_clients

Facts = dict[str, Any]

SERVICE: Facts = {"purpose": "inference", "production": True, "latency": True}
DEV_SERVICE: Facts = {"purpose": "inference", "production": False}
NOTEBOOK: Facts = {"purpose": "notebook", "production": False, "bursty": True}
DEV: Facts = {"purpose": "dev", "production": False}
TRAINING: Facts = {"purpose": "training"}
BATCH: Facts = {"purpose": "batch"}
GIB = 1024

PRIMER = [
    # what                                                     GPU     choice         share    why
    (
        {**SERVICE, "tenants": "several", "memory_mib": 8 * GIB},
        "h100",
        "mig",
        "1g.10gb",
        "IsolationForService",
    ),
    (NOTEBOOK, "h100", "time-slicing", "4", "TurnsForInteractive"),
    ({**TRAINING, "gpus": 8, "together": True}, "h100", "whole", "1", "WholeForSeveralGpus"),
]

MORE = [
    # production inference: an instance that holds the model, by its memory and then by its compute
    ({**SERVICE, "memory_mib": 9 * GIB}, "h100", "mig", "1g.10gb", "ShareFitsMemory"),
    ({**SERVICE, "memory_mib": 15 * GIB}, "h100", "mig", "2g.20gb", "ShareFitsMemory"),
    ({**SERVICE, "memory_mib": 15 * GIB, "latency": False}, "h100", "mig", "1g.20gb", "ShareFitsMemory"),
    ({**SERVICE, "memory_mib": 30 * GIB}, "h100", "mig", "3g.40gb", "ShareFitsMemory"),
    ({**SERVICE, "memory_mib": 30 * GIB}, "h200", "mig", "2g.35gb", "ShareFitsMemory"),
    ({**SERVICE, "memory_mib": 4 * GIB}, "a100-40gb", "mig", "1g.5gb", "ShareFitsMemory"),
    ({**SERVICE, "memory_mib": 10 * GIB}, "a30", "mig", "2g.12gb", "ShareFitsMemory"),
    ({**SERVICE, "memory_mib": 20 * GIB}, "b200", "mig", "1g.23gb", "ShareFitsMemory"),
    (SERVICE, "h100", "mig", "3g.40gb", "MemoryNeedUnknown"),
    (SERVICE, "a30", "mig", "2g.12gb", "MemoryNeedUnknown"),
    ({**SERVICE, "production": None, "memory_mib": 9 * GIB}, "h100", "mig", "1g.10gb", "IsolationForService"),
    ({**SERVICE, "memory_percent": 20}, "h100", "mig", "2g.20gb", "ShareFitsMemory"),
    # ... and what it gets where that cannot be
    ({**SERVICE, "memory_mib": 60 * GIB}, "h100", "whole", "1", "NextBestSharing"),
    ({**SERVICE, "memory_mib": 140 * GIB}, "h100", "whole", "1", "ExceedsGpuMemory"),
    ({**SERVICE, "gpus": 2, "memory_mib": 140 * GIB}, "h100", "whole", "1", "WholeForSeveralGpus"),
    ({**SERVICE, "memory_mib": 5 * GIB, "tenants": "several"}, "l4", "whole", "1", "NextBestSharing"),
    ({**SERVICE, "memory_mib": 5 * GIB}, "l4", "whole", "1", "NextBestSharing"),
    ({**SERVICE, "memory_mib": 5 * GIB, "tenants": "one"}, "l4", "mps", "4", "NextBestSharing"),
    ({**SERVICE, "memory_mib": 5 * GIB, "tenants": "one", "takes_all": True}, "l4", "mps", "4",
     "EngineTakesMemory"),
    ({**SERVICE, "memory_mib": 5 * GIB, "tenants": "one", "mps": False}, "l4", "whole", "1",
     "NextBestSharing"),
    ({**SERVICE, "tenants": "one"}, "l4", "whole", "1", "NextBestSharing"),
    ({**SERVICE, "memory_mib": 3 * GIB, "tenants": "one"}, "p100", "whole", "1", "NextBestSharing"),
    # notebooks and development
    ({**NOTEBOOK, "tenants": "several"}, "t4", "time-slicing", "4", "NoMemoryLimit"),
    ({**NOTEBOOK, "memory_mib": 10 * GIB}, "h100", "time-slicing", "7", "ShareFitsMemory"),
    ({**NOTEBOOK, "memory_mib": GIB}, "h100", "time-slicing", "8", "TurnsForInteractive"),
    ({**NOTEBOOK, "memory_mib": 18 * GIB}, "l4", "whole", "1", "NextBestSharing"),
    ({**DEV, "bursty": False, "tenants": "one", "memory_mib": 10 * GIB}, "a10g", "mps", "2", "LimitsForTeam"),
    ({**DEV, "bursty": False, "tenants": "one"}, "a10g", "time-slicing", "4", "TurnsForInteractive"),
    (DEV_SERVICE, "l40s", "time-slicing", "4", "TurnsForInteractive"),
    ({**DEV_SERVICE, "takes_all": True}, "l40s", "time-slicing", "4", "EngineTakesMemory"),
    ({**NOTEBOOK, "gpus": 2}, "h100", "whole", "1", "WholeForSeveralGpus"),
    # training
    (TRAINING, "h100", "whole", "1", "WholeForOneJob"),
    ({**TRAINING, "together": True, "pods": 4, "memory_mib": GIB}, "h100", "whole", "1",
     "WholeForSeveralGpus"),
    ({**TRAINING, "pods": 20, "memory_mib": 8 * GIB}, "a100", "mig", "1g.10gb", "PartForSmallJobs"),
    ({**TRAINING, "pods": 20, "memory_mib": 8 * GIB}, "l4", "mps", "2", "PartForSmallJobs"),
    ({**TRAINING, "memory_mib": 60 * GIB}, "h100", "whole", "1", "WholeForOneJob"),
    # work that can wait
    (BATCH, "h100", "whole", "1", "WholeForOneJob"),
    ({**BATCH, "memory_mib": 6 * GIB}, "l4", "mps", "3", "LimitsForTeam"),
    ({**BATCH, "memory_mib": 6 * GIB, "tenants": "several"}, "h100", "mig", "1g.10gb", "NextBestSharing"),
    ({**BATCH, "memory_mib": 6 * GIB, "tenants": "several"}, "l4", "time-slicing", "3", "NextBestSharing"),
    ({**BATCH, "memory_mib": 6 * GIB, "mps": False}, "h100", "mig", "1g.10gb", "NextBestSharing"),
    # nothing is known
    ({}, "h100", "whole", "1", "WholeWhenUnsure"),
    ({"gpus": 0}, "h100", "whole", "1", "WholeWhenUnsure"),
    ({"memory_percent": 50}, "h100", "whole", "1", "WholeWhenUnsure"),
    ({"memory_percent": 25}, "h100", "mig", "3g.40gb", "PartForSmallJobs"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "gpu", "choice", "share", "why"), PRIMER + MORE)
def test_the_advice_is(facts: Facts, gpu: str, choice: str, share: str, why: str) -> None:
    found = advise(WorkloadFacts(**facts), find_product(gpu))
    assert (found.choice, found.profile or str(found.replicas)) == (choice, share)
    assert why in {reason.code for reason in found.reasons}


def test_there_are_thirty_cases_beside_the_primers() -> None:
    assert len(MORE) >= 30


facts = st.builds(
    WorkloadFacts,
    purpose=st.sampled_from(["inference", "training", "notebook", "batch", "dev", "unknown"]),
    production=st.sampled_from([None, True, False]),
    gpus=st.integers(0, 16),
    pods=st.integers(1, 100),
    together=st.booleans(),
    memory_mib=st.none() | st.integers(1, 400_000),
    memory_percent=st.none() | st.integers(1, 100),
    takes_all=st.booleans(),
    tenants=st.sampled_from(["one", "several", "unknown"]),
    latency=st.booleans(),
    bursty=st.sampled_from([None, True, False]),
    mps=st.booleans(),
)
products = st.sampled_from(list(PRODUCTS.values()))


@given(facts=facts, product=products)
def test_every_workload_gets_one_advice_that_says_why_and_why_not_otherwise(
    facts: WorkloadFacts, product: Product
) -> None:
    found = advise(facts, product)
    assert [one.choice for one in found.weighed] == [one for one in CHOICES if one != found.choice]
    for reason in (*found.reasons, *(one.reason for one in found.weighed)):
        assert reason.code in CODES
        assert reason.message
    assert found == advise(facts, product)


@given(facts=facts, product=products)
def test_a_share_is_one_that_the_gpu_can_have_and_holds_what_is_needed(
    facts: WorkloadFacts, product: Product
) -> None:
    found, need = advise(facts, product), facts.need_mib(product)
    match found.choice:
        case "whole":
            assert (found.replicas, found.profile) == (1, "")
            assert found.gpus == max(1, facts.gpus)
        case "mig":
            profile = GEOMETRIES[product.mig].profiles[found.profile]
            assert 1 < found.replicas <= profile.limit
            assert need is None or need <= product.memory_mib * profile.size // GEOMETRIES[product.mig].slots
        case "mps":
            assert 1 < found.replicas <= min(MOST_SHARES, mps_clients(product.compute))
        case "time-slicing":
            assert 1 < found.replicas <= MOST_SHARES
    if found.choice in ("mps", "time-slicing"):
        assert need is None or need * found.replicas <= product.memory_mib


@given(facts=facts, product=products)
def test_what_must_never_be_shared_is_not(facts: WorkloadFacts, product: Product) -> None:
    choice = advise(facts, product).choice
    if facts.gpus > 1 or facts.together:
        assert choice == "whole"
    if facts.purpose == "inference" and facts.production:
        assert choice != "time-slicing"
        assert choice != "mps" or facts.tenants == "one"
    if facts.tenants == "several" or not facts.mps:
        assert choice != "mps"


@pytest.mark.parametrize(
    ("compute", "clients"), [((6, 1), 0), ((7, 0), 16), ((7, 5), 48), ((9, 0), 48), ((10, 0), 48)]
)
def test_a_server_takes_as_many_clients_as_its_gpu_allows(compute: tuple[int, int], clients: int) -> None:
    assert mps_clients(compute) == clients
