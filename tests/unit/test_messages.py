"""Reasons in words: counted, in the form that people know from kube-scheduler, with our codes at the end."""

from __future__ import annotations

import ast
import inspect
import pkgutil
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import node, pod
from tests.unit.random_fleets import examples, fleets

import gpufleet.scheduling
from gpufleet.fleet.reasons import CODES, Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling import messages
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.messages import condition_message, node_reasons, pod_reason
from gpufleet.scheduling.placement import Block
from gpufleet.scheduling.trial import Trial

SCHEDULING = Path(inspect.getfile(gpufleet.scheduling)).parent


def codes_in(calls: set[str]) -> set[str]:
    """The first arguments of all calls of these names in the scheduling room, as they stand in its source."""
    found = set()
    for module in pkgutil.iter_modules([str(SCHEDULING)]):
        for part in ast.walk(ast.parse((SCHEDULING / f"{module.name}.py").read_text())):
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in calls:
                first = part.args[0] if part.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add(first.value)
    return found


def test_every_code_that_is_used_is_in_the_vocabulary() -> None:
    used = codes_in({"Block", "Reason"})
    assert len(used) > 30
    assert used <= CODES.keys()


def test_the_healthiest_of_several_nodes_is_the_one_that_is_counted() -> None:
    blocks = [
        Block("DeviceUnhealthy", "nvidia.com/gpu", 3, have, total=total) for have, total in ((2, 4), (0, 8))
    ]
    (reason,) = node_reasons(zip("ab", blocks, strict=True))
    assert reason.message == "2 nodes with too few healthy nvidia.com/gpu: 3 needed, at most 2 of 4"
    assert reason.evidence == {"need": 3, "have": 2, "total": 4}


def test_every_way_in_which_a_node_is_out_has_words_in_both_tongues() -> None:
    assert messages._SENTENCES.keys() == messages._KUBERNETES_WORDS.keys()
    of_pods = {
        "ClaimLost",
        "ClaimNotFound",
        "ClaimTerminating",
        "ClaimUnbound",
        "DynamicResources",
        "FractionInvalid",
        "NoNodes",
        "SchedulingGated",
        "StorageClassNotFound",
    }
    assert codes_in({"Block"}) - of_pods == messages._SENTENCES.keys()
    for code in messages._SENTENCES:
        block = Block(code, "what", 3, 1)
        (reason,) = node_reasons([("a", block), ("b", block)])
        assert (reason.code, reason.nodes, reason.subject) == (code, 2, "what")
        assert reason.message.startswith("2 nodes")
        assert condition_message([reason], 5).startswith("0/5 nodes are available: 2 ")
        assert "{" not in reason.message + condition_message([reason], 5)


def test_the_commonest_way_comes_first_and_one_node_is_one_node() -> None:
    rare, common = Block("NodeNotReady", "not ready"), Block("UntoleratedTaint", "taint a=b:NoSchedule")
    found = node_reasons([("a", rare), ("b", common), ("c", common)])
    assert [reason.message for reason in found] == [
        "2 nodes with taint a=b:NoSchedule, which the pod does not tolerate",
        "1 node not ready",
    ]


def test_amounts_are_told_as_people_write_them() -> None:
    blocks = [("a", Block("InsufficientResource", "memory", 16 << 30, 4 << 30))]
    blocks += [("b", Block("InsufficientResource", "memory", 16 << 30, -(1 << 30)))]
    (reason,) = node_reasons(blocks)
    assert reason.message == "2 nodes with too little memory free: 16Gi needed, at most 4Gi free"
    assert reason.evidence == {"need": 16 << 30, "have": 4 << 30}
    (reason,) = node_reasons([("a", Block("ExceedsNodeCapacity", "cpu", 2500, 1500))])
    assert reason.message == "1 node too small: 2500m cpu needed on one node, the largest has 1500m"


def test_what_is_needed_and_what_is_free_are_told_in_one_unit() -> None:
    (cpu,) = node_reasons([("a", Block("ExceedsNodeCapacity", "cpu", 96500, 96000))])
    assert cpu.message == "1 node too small: 96500m cpu needed on one node, the largest has 96000m"
    (memory,) = node_reasons([("a", Block("InsufficientResource", "memory", 16 << 30, 4186112 << 10))])
    assert memory.message == "1 node with too little memory free: 16Gi needed, at most 3.99Gi free"


def test_a_node_counts_for_every_resource_that_is_short_there() -> None:
    gpu = Block("InsufficientResource", "nvidia.com/gpu", 4, 0)
    cpu = Block("InsufficientResource", "cpu", 50_000, 12_000)
    reasons = node_reasons([("a", msgspec.structs.replace(gpu, more=(cpu,))), ("b", gpu)])
    assert [reason.message for reason in reasons] == [
        "2 nodes with too little nvidia.com/gpu free: 4 needed, at most 0 free",
        "1 node with too little cpu free: 50 needed, at most 12 free",
    ]
    assert condition_message(reasons, 2) == (
        "0/2 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu. [InsufficientResource]"
    )


def test_a_key_at_the_start_of_a_sentence_stays_as_it_is_written() -> None:
    reason = Reason("GangInvalid", "gpufleet.dev/gang-size must be a positive number, not 'x'")
    assert condition_message([reason], 2).startswith("gpufleet.dev/gang-size must be")


def test_a_node_that_is_overdrawn_has_nothing_free() -> None:
    (reason,) = node_reasons([("a", Block("InsufficientResource", "nvidia.com/gpu", 4, -3))])
    assert reason.message.endswith("4 needed, at most 0 free")
    assert reason.evidence == {"need": 4, "have": 0}


def test_the_line_has_the_form_of_kube_scheduler_and_ends_with_the_codes() -> None:
    reasons = [
        *node_reasons(
            [
                *((f"n{i}", Block("InsufficientResource", "nvidia.com/gpu", 8, 3)) for i in range(4)),
                ("x", Block("NodeSelectorMismatch", "label zone is not x")),
                ("y", Block("NodeAffinityMismatch", "label disk is not ssd")),
            ]
        ),
        Reason("NoVictims", "evicting pods of lower priority would not make room"),
    ]
    assert condition_message(reasons, 7) == (
        "0/7 nodes are available: 2 node(s) didn't match Pod's node affinity/selector, "
        "4 Insufficient nvidia.com/gpu. Evicting pods of lower priority would not make room. "
        "[InsufficientResource, NodeAffinityMismatch, NodeSelectorMismatch, NoVictims]"
    )


def test_reasons_that_are_not_about_nodes_need_no_count() -> None:
    reason = pod_reason(Block("ClaimNotFound", "claim default/data does not exist"), "default/p")
    assert reason == Reason("ClaimNotFound", "claim default/data does not exist", "default/p")
    assert condition_message([reason], 7) == "Claim default/data does not exist. [ClaimNotFound]"


@given(st.lists(st.sampled_from(sorted(CODES)), min_size=1, max_size=6), st.text(max_size=3000))
def test_a_long_line_keeps_its_codes(codes: list[str], text: str) -> None:
    line = condition_message([Reason(code, text) for code in codes], 3)
    assert len(line) <= messages.LONGEST
    assert line.endswith(f"[{', '.join(dict.fromkeys(codes))}]")


@examples(40)
@given(fleets())
def test_a_line_counts_each_node_once_for_each_way_in_which_it_is_out(snapshot: Snapshot) -> None:
    trial = Trial(Ledger.build(snapshot))
    for p in snapshot.unbound.values():
        search = trial.search(p)
        if search.best() is None:
            line = condition_message(search.reasons(), len(snapshot.nodes))
            counted = line.split(": ", 1)[1].split(". [")[0]
            ways = [part for part in counted.split(", ") if part[0].isdigit()]
            counts = [int(way.split()[0]) for way in ways]
            assert sum(counts) == sum(len(block.parts) for _, block in search.blocks())
            assert max(counts) <= len(snapshot.nodes) <= sum(counts)


def test_braces_in_names_are_left_alone() -> None:
    trial = Trial(Ledger.build(Snapshot(nodes={"a": node("a")})))
    search = trial.search(pod(node_selector={"{nodes}": "{x}"}))
    assert "{nodes}" in search.reasons()[0].message
