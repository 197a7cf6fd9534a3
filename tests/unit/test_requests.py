"""What a pod asks for: the cases of Kubernetes' own rule (component-helpers/resource 1.37), one by one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.kube.objects import Pod
from gpufleet.kube.requests import effective_requests

Quantities = dict[str, str]


def ask(cpu: str = "", memory: str = "", gpu: str = "", **more: str) -> Quantities:
    named = {"cpu": cpu, "memory": memory, "nvidia.com/gpu": gpu, **more}
    return {resource: text for resource, text in named.items() if text}


def container(
    name: str = "main", *, sidecar: bool = False, limits: Quantities | None = None, **asked: str
) -> Any:
    found: dict[str, Any] = {"name": name, "resources": {"requests": ask(**asked), "limits": limits or {}}}
    return {**found, "restartPolicy": "Always"} if sidecar else found


def granted(name: str = "main", allocated: Quantities | None = None, actual: Quantities | None = None) -> Any:
    """A container's status: what the kubelet has allocated, and what it has carried out."""
    status: dict[str, Any] = {"name": name}
    if allocated:
        status["allocatedResources"] = allocated
    if actual:
        status["resources"] = {"requests": actual}
    return status


def total(*containers: Any, init: tuple[Any, ...] = (), status: Any = None, **spec: Any) -> dict[str, int]:
    """The effective request, without `pods`."""
    manifest = {
        "metadata": {"name": "p"},
        "spec": {"containers": list(containers), "initContainers": list(init), **spec},
        "status": status or {},
    }
    found = dict(effective_requests(msgspec.convert(manifest, Pod)))
    assert found.pop("pods") == 1
    return found


def resizing(reason: str, *statuses: Any, **more: Any) -> Any:
    condition = {"type": "PodResizePending", "status": "True", "reason": reason}
    return {"conditions": [condition], "containerStatuses": list(statuses), **more}


# containers


def test_a_pod_that_asks_for_nothing_counts_as_a_pod() -> None:
    assert total(container()) == {}


def test_containers_are_summed() -> None:
    found = total(container("a", cpu="500m", memory="1Gi"), container("b", cpu="1", gpu="2"))
    assert found == {"cpu": 1500, "memory": 1 << 30, "nvidia.com/gpu": 2}


def test_zeros_are_left_out() -> None:
    assert total(container(cpu="0", gpu="0")) == {}


def test_a_fraction_of_a_byte_is_a_byte() -> None:
    assert total(container(memory="100m")) == {"memory": 1}


def test_an_extended_resource_may_stand_in_limits_alone() -> None:
    limited = container(cpu="1", limits={"nvidia.com/gpu": "1", "memory": "1Gi"})
    assert total(limited) == {"cpu": 1000, "nvidia.com/gpu": 1}


# init containers and sidecars


def test_the_largest_init_container_counts_if_it_is_larger_than_all_containers() -> None:
    small, large = container("i0", cpu="1"), container("i1", cpu="4", memory="1Gi")
    assert total(container(cpu="2", gpu="1"), init=(small, large)) == {
        "cpu": 4000,
        "memory": 1 << 30,
        "nvidia.com/gpu": 1,
    }


def test_a_sidecar_runs_beside_the_containers() -> None:
    assert total(container(cpu="1"), init=(container("s", sidecar=True, cpu="1"),)) == {"cpu": 2000}


def test_an_init_container_runs_beside_the_sidecars_before_it_only() -> None:
    side, init = container("s", sidecar=True, cpu="1"), container("i", cpu="3")
    assert total(container(cpu="1"), init=(side, init)) == {"cpu": 4000}
    assert total(container(cpu="1"), init=(init, side)) == {"cpu": 3000}


def test_several_sidecars_and_init_containers() -> None:
    init = (
        container("i0", cpu="5"),
        container("s0", sidecar=True, cpu="1"),
        container("i1", cpu="2"),
        container("s1", sidecar=True, cpu="2"),
        container("i2", cpu="4"),
    )
    assert total(container(cpu="3"), init=init) == {"cpu": 7000}
    assert total(container(cpu="5"), init=init) == {"cpu": 8000}


# overhead and pod-level resources


def test_overhead_comes_on_top_of_whatever_counts() -> None:
    overhead = {"cpu": "250m", "memory": "64Mi"}
    assert total(container(cpu="1"), overhead=overhead) == {"cpu": 1250, "memory": 64 << 20}
    assert total(container(cpu="1"), init=(container("i", cpu="2"),), overhead=overhead)["cpu"] == 2250


def test_pod_level_requests_replace_the_sums() -> None:
    level = {"requests": ask(cpu="5", memory="1Gi")}
    found = total(container(cpu="1", memory="2Gi", gpu="1"), resources=level, overhead={"cpu": "1"})
    assert found == {"cpu": 6000, "memory": 1 << 30, "nvidia.com/gpu": 1}


def test_pod_level_requests_for_devices_are_not_supported() -> None:
    level = {"requests": ask(cpu="2", gpu="4")}
    assert total(container(cpu="1", gpu="1"), resources=level) == {"cpu": 2000, "nvidia.com/gpu": 1}


def test_huge_pages_may_stand_at_pod_level() -> None:
    level = {"requests": {"hugepages-2Mi": "8Mi"}}
    assert total(container(cpu="1"), resources=level) == {"cpu": 1000, "hugepages-2Mi": 8 << 20}


def test_pod_level_limits_stand_for_requests_where_no_container_asks() -> None:
    level = {"limits": ask(cpu="4", memory="4Gi")}
    assert total(container(cpu="1"), resources=level) == {"cpu": 1000, "memory": 4 << 30}


def test_an_empty_pod_level_changes_nothing() -> None:
    assert total(container(cpu="1"), resources={}) == {"cpu": 1000}


# resizes


def test_without_a_resize_the_status_repeats_the_request() -> None:
    same = ask(cpu="1")
    assert total(
        container(cpu="1"), status={"containerStatuses": [granted(allocated=same, actual=same)]}
    ) == {"cpu": 1000}


@pytest.mark.parametrize(
    ("asked", "allocated", "actual", "expected"),
    [
        ("4", "2", "2", 4000),  # larger: not granted yet
        ("1", "2", "2", 2000),  # smaller: not given back yet
        ("1", "1", "2", 2000),  # smaller: allocated, not carried out
        ("2", "3", "1", 3000),  # two resizes in a row
    ],
)
def test_the_largest_of_the_three_sides_counts(
    asked: str, allocated: str, actual: str, expected: int
) -> None:
    status = granted(allocated=ask(cpu=allocated), actual=ask(cpu=actual))
    assert total(container(cpu=asked), status={"containerStatuses": [status]}) == {"cpu": expected}


def test_the_largest_is_taken_of_the_sums_not_of_each_container() -> None:
    """One container grows while another one shrinks by as much: the pod needs no more than before."""
    found = total(
        container("a", cpu="4"),
        container("b", cpu="1"),
        status={"containerStatuses": [granted("a", ask(cpu="1")), granted("b", ask(cpu="4"))]},
    )
    assert found == {"cpu": 5000}


def test_each_resource_has_its_own_largest_side() -> None:
    status = granted(allocated=ask(cpu="1", memory="4Gi"), actual=ask(cpu="3", memory="1Gi"))
    found = total(container(cpu="2", memory="2Gi"), status={"containerStatuses": [status]})
    assert found == {"cpu": 3000, "memory": 4 << 30}


def test_an_infeasible_resize_does_not_count() -> None:
    status = granted(allocated=ask(cpu="2"), actual=ask(cpu="2"))
    assert total(container(cpu="8"), status=resizing("Infeasible", status)) == {"cpu": 2000}
    assert total(container(cpu="8"), status=resizing("Deferred", status)) == {"cpu": 8000}


def test_an_infeasible_resize_keeps_what_is_still_being_carried_out() -> None:
    status = granted(allocated=ask(cpu="1"), actual=ask(cpu="3"))
    assert total(container(cpu="8"), status=resizing("Infeasible", status)) == {"cpu": 3000}


def test_what_was_allocated_stands_for_what_was_carried_out_where_that_is_not_told() -> None:
    assert total(container(cpu="1"), status={"containerStatuses": [granted(allocated=ask(cpu="3"))]}) == {
        "cpu": 3000
    }
    assert total(container(cpu="1"), status={"containerStatuses": [granted(actual=ask(cpu="3"))]}) == {
        "cpu": 3000
    }


def test_a_sidecar_is_resized_as_a_container_is() -> None:
    side = container("s", sidecar=True, cpu="1")
    status = {"initContainerStatuses": [granted("s", ask(cpu="3"), ask(cpu="3"))]}
    assert total(container(cpu="1"), init=(side,), status=status) == {"cpu": 4000}


def test_a_container_without_a_status_counts_as_asked_for_beside_one_with() -> None:
    status = {"containerStatuses": [granted("a", ask(cpu="3"))]}
    assert total(container("a", cpu="1"), container("b", cpu="1"), status=status) == {"cpu": 4000}


def test_a_pod_level_resize_has_three_sides_too() -> None:
    level = {"requests": ask(cpu="6")}
    grown = {"resources": {"requests": ask(cpu="2")}, "allocatedResources": ask(cpu="4")}
    assert total(container(cpu="1"), resources=level, status=grown) == {"cpu": 6000}
    assert total(container(cpu="1"), resources=level, status={**grown, **resizing("Infeasible")}) == {
        "cpu": 4000
    }
    shrunk = {"resources": {"requests": ask(cpu="9")}, "allocatedResources": ask(cpu="4")}
    assert total(container(cpu="1"), resources=level, status=shrunk) == {"cpu": 9000}


def test_the_pods_own_status_stands_for_those_of_its_containers() -> None:
    status = {
        "containerStatuses": [granted(allocated=ask(cpu="9"), actual=ask(cpu="9"))],
        "resources": {"requests": ask(cpu="3")},
        "allocatedResources": ask(cpu="2"),
    }
    assert total(container(cpu="1"), status=status) == {"cpu": 3000}


# what holds for all pods


QUANTITIES = st.fixed_dictionaries(
    {}, optional={"cpu": st.sampled_from(["1", "250m"]), "nvidia.com/gpu": st.sampled_from(["1", "2"])}
)


@given(
    st.lists(QUANTITIES, min_size=1, max_size=3),
    st.lists(st.tuples(QUANTITIES, st.booleans()), max_size=3),
    st.lists(QUANTITIES, max_size=3),
)
def test_no_moment_of_the_pods_life_needs_more_than_its_request(
    running: list[Quantities], starting: list[tuple[Quantities, bool]], allocated: list[Quantities]
) -> None:
    """The sum of all that run at once, while each init container runs and after them."""
    containers = [{"name": f"c{i}", "resources": {"requests": r}} for i, r in enumerate(running)]
    init = [
        {"name": f"i{i}", "resources": {"requests": r}, **({"restartPolicy": "Always"} if side else {})}
        for i, (r, side) in enumerate(starting)
    ]
    statuses = [granted(f"c{i}", r) for i, r in enumerate(allocated)]
    found = total(*containers, init=tuple(init), status={"containerStatuses": statuses})
    for resource, scale in (("cpu", 1000), ("nvidia.com/gpu", 1)):

        def amount(quantities: Quantities, resource: str = resource, scale: int = scale) -> float:
            text = quantities.get(resource, "0")
            return scale * (int(text[:-1]) / 1000 if text.endswith("m") else int(text))

        sides = 0.0
        for quantities, side in starting:
            assert found.get(resource, 0) >= sides + amount(quantities)
            sides += amount(quantities) if side else 0
        assert found.get(resource, 0) >= sides + sum(map(amount, running))
