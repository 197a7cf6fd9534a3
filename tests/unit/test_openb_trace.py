"""The openb trace as it is read, and the arrivals that a seed makes of it."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest
from tests.unit.small_traces import node, pod, write_openb

from gpufleet.fleet.errors import GpufleetError
from gpufleet.simulator.openb import ARRIVED_PERCENT, Trace, arrivals, find_traces, read_trace, variants
from gpufleet.simulator.traces import TraceNode, TracePod, capacity_milli, demand_milli

NODES = (node("n0", 2), node("n1", 8, "G2"), node("n2", 4))
PODS = [
    pod("p0", milli=500),
    pod("p1", gpus=2, cpu=4, memory=8),
    pod("p2", gpus=0),
    pod("p3", milli=250, models="T4|G2"),
]

HEAD = b"name,cpu_milli,memory_mib,num_gpu,gpu_milli\n"


def trace_of(*pods: TracePod, nodes: tuple[TraceNode, ...] = NODES) -> Trace:
    return Trace("mine", nodes, pods)


# --------------------------------------------------------------------------------------------------- reading


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write_openb(tmp_path, NODES, {"default": PODS}) / "openb"
    assert read_trace(folder, "default") == Trace("default", NODES, tuple(PODS))


def test_a_list_without_models_has_pods_for_any_gpu(tmp_path: Path) -> None:
    folder = write_openb(tmp_path, NODES, {"default": PODS}) / "openb"
    path = folder / "openb_pod_list_multigpu20.csv.gz"
    path.write_bytes(gzip.compress(HEAD + b"p0,1000,1024,1,500\n"))
    assert read_trace(folder, "multigpu20").pods == (pod("p0", milli=500),)


def test_published_variants_are_named_first_and_in_their_order(tmp_path: Path) -> None:
    given: dict[str, list[TracePod]] = {"mine": [], "cpu050": [], "gpushare40": [], "default": []}
    folder = write_openb(tmp_path, NODES, given) / "openb"
    assert variants(folder) == ("default", "gpushare40", "cpu050", "mine")


def test_a_variant_that_the_folder_does_not_have_is_an_error_that_names_the_others(tmp_path: Path) -> None:
    folder = write_openb(tmp_path, NODES, {"default": PODS, "cpu050": PODS}) / "openb"
    with pytest.raises(GpufleetError) as caught:
        read_trace(folder, "cpu")
    assert caught.value.reason == "UnknownVariant"
    assert "default, cpu050" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip at all",
        gzip.compress(b"name,cpu_milli\np0,1000\n"),
        gzip.compress(HEAD + b"p0,1000,1024,one,500\n"),
        gzip.compress(HEAD + b"p0,1000\n"),
        gzip.compress(HEAD + b"p0,1000,1024,0,0\n"),
    ],
    ids=["not compressed", "columns missing", "no number", "short line", "no GPU"],
)
def test_a_file_that_is_no_such_table_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    folder = write_openb(tmp_path, NODES, {}) / "openb"
    (folder / "openb_pod_list_default.csv.gz").write_bytes(content)
    with pytest.raises(GpufleetError) as caught:
        read_trace(folder, "default")
    assert caught.value.reason == "BadTrace"
    assert "openb_pod_list_default.csv.gz" in caught.value.message


def test_the_folder_is_the_given_one_else_the_shared_one_else_the_one_beside(tmp_path: Path) -> None:
    given = write_openb(tmp_path / "given", NODES, {})
    shared = write_openb(tmp_path / "elsewhere" / "traces", NODES, {})
    beside = write_openb(tmp_path / "shared" / "traces", NODES, {})
    environment = {"GPUFLEET_SHARED": str(shared.parent)}
    here = tmp_path / "checkout"
    assert find_traces(given, environment, here) == given / "openb"
    assert find_traces(given / "openb", environment, here) == given / "openb"
    assert find_traces(None, environment, here) == shared / "openb"
    assert find_traces(None, {}, here) == beside / "openb"


def test_no_trace_is_an_error_that_says_how_to_name_its_folder(tmp_path: Path) -> None:
    with pytest.raises(GpufleetError, match=str(tmp_path)) as caught:
        find_traces(tmp_path, {}, tmp_path)
    assert caught.value.reason == "TracesNotFound"
    assert "--traces DIR" in caught.value.hint


# -------------------------------------------------------------------------------------------------- arrivals


def test_a_seed_makes_the_same_arrivals_again_and_another_seed_others() -> None:
    trace = trace_of(*(pod(f"p{number}", milli=100 * number) for number in range(1, 10)))
    assert arrivals(trace, 42) == arrivals(trace, 42)
    assert arrivals(trace, 42).pods != arrivals(trace, 43).pods


def test_every_pod_arrives_and_then_clones_until_the_next_would_exceed_the_target() -> None:
    trace = trace_of(*PODS)
    _, pods = arrivals(trace, 42)
    assert Counter(pods[: len(PODS)]) == Counter(PODS)
    clones = pods[len(PODS) :]
    target = ARRIVED_PERCENT * capacity_milli(NODES) // 100
    assert clones
    assert {one.request for one in clones} <= {one.request for one in PODS}
    assert len({one.name for one in pods}) == len(pods)
    assert target - 1000 < demand_milli(pods) <= target + 1000


def test_only_a_pod_with_several_gpus_overshoots_and_by_all_but_one_of_them_at_most() -> None:
    for seed in range(20):
        assert demand_milli(arrivals(trace_of(pod("a", gpus=8)), seed).pods) == 24_000
        assert demand_milli(arrivals(trace_of(pod("a")), seed).pods) == 18_000


def test_more_than_the_target_is_removed_at_random_until_it_is_not() -> None:
    trace = trace_of(*(pod(f"p{number:02}") for number in range(40)))
    _, pods = arrivals(trace, 42)
    assert demand_milli(pods) == 18_000
    assert set(pods) < set(trace.pods)
    assert set(pods) != set(arrivals(trace, 43).pods)


def test_demand_at_the_target_stays_as_it_is() -> None:
    nodes = (node("n0", 10),)
    trace = trace_of(*(pod(f"p{number:02}") for number in range(13)), nodes=nodes)
    assert sorted(arrivals(trace, 42).pods) == sorted(trace.pods)


def test_the_order_in_files_does_not_matter_and_nodes_come_in_an_order_of_the_seed() -> None:
    nodes = tuple(node(f"n{number}") for number in range(9))
    trace = trace_of(*PODS, nodes=nodes)
    turned = trace_of(*reversed(PODS), nodes=nodes[::-1])
    assert arrivals(trace, 42) == arrivals(turned, 42)
    assert sorted(arrivals(trace, 42).nodes) == sorted(nodes)
    assert arrivals(trace, 42).nodes not in (nodes, arrivals(trace, 43).nodes)


def test_pods_without_gpus_alone_arrive_as_they_are() -> None:
    trace = trace_of(pod("p0", gpus=0), pod("p1", gpus=0))
    assert sorted(arrivals(trace, 42).pods) == sorted(trace.pods)
