"""The labels of the MIG manager: the states follow each other as with NVIDIA's manager, and none lasts."""

from __future__ import annotations

import random

import pytest

from gpufleet.devices.mig_changes import MigChange, SwitchMode
from gpufleet.devices.mig_labels import PENDING_S, REBOOTING_S, Attempt, Finding, advance, heed
from gpufleet.devices.mig_manager import Outcome
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.reasons import CODES, Reason

WORK = MigChange(cutting=(SwitchMode("GPU-0", on=True, cancels=True),))
SWITCH = MigChange(switching=(SwitchMode("GPU-0", on=True),))
APPLIED = MigChange()
UNKNOWN = GpufleetError(reason="UnknownMigConfig", message="there is no MIG config 'x'")
UNFIT = GpufleetError(reason="MigDoesNotFit", message="does not fit")
RESET = Reason("MigResetRequired", "reset it")


def blocked(code: str) -> MigChange:
    return MigChange(blocked=(Reason(code, "because"),))


def states(*found: Finding, shown: str = "", may_reboot: bool = False) -> list[str]:
    """The states that the label shows, when these are the findings one after the other."""
    attempt = heed(Attempt(), "all-1g.10gb", shown, 0.0)
    seen: list[str] = []
    for one in found:
        attempt = advance(attempt, one, 1.0, may_reboot=may_reboot)
        if attempt.state and attempt.state not in seen[-1:]:
            seen.append(attempt.state)
    return [*seen, "..."] if attempt.open else seen


@pytest.mark.parametrize(
    ("found", "seen"),
    [
        # what is found                                            states as NVIDIA's manager shows them
        ((APPLIED,),                                               ["success"]),
        ((UNKNOWN,),                                               ["failed"]),
        ((WORK, WORK, Outcome("done")),                            ["pending", "success"]),
        ((WORK, APPLIED),                                          ["pending", "success"]),
        ((WORK, Outcome("failed")),                                ["pending", "failed"]),
        ((UNFIT, UNFIT),                                           ["pending", "failed"]),
        ((blocked("MigDoesNotFit"),) * 2,                          ["pending", "failed"]),
        ((blocked("MigModeSwitchNotAllowed"),) * 2,                ["pending", "failed"]),
        ((SWITCH, SWITCH, Outcome("reset-required", (RESET,))),    ["pending", "failed"]),
        ((blocked("MigResetRequired"),) * 2,                       ["pending", "failed"]),
    ],
)  # fmt: skip
def test_states_follow_each_other_as_with_nvidias_manager(
    found: tuple[Finding, ...], seen: list[str]
) -> None:
    assert states(*found) == seen


def test_an_instance_in_use_is_waited_for() -> None:
    busy = blocked("MigInstanceBusy")
    assert states(busy, busy, busy) == ["pending", "..."]
    assert states(busy, busy, WORK, Outcome("blocked"), WORK, Outcome("done")) == ["pending", "success"]


def test_a_switch_that_needs_a_reset_reboots_where_it_may_and_fails_when_that_did_not_help() -> None:
    waiting = Outcome("reset-required", (RESET,))
    assert states(SWITCH, waiting, may_reboot=True) == ["pending", "rebooting", "..."]
    assert states(blocked("MigResetRequired"), blocked("MigResetRequired"), may_reboot=True)[1] == "rebooting"
    assert states(SWITCH, shown="rebooting", may_reboot=True) == ["failed"]
    assert states(blocked("MigResetRequired"), shown="rebooting", may_reboot=True) == ["failed"]
    assert states(WORK, Outcome("done"), shown="rebooting") == ["pending", "success"]
    assert states(APPLIED, shown="rebooting") == ["success"]


def test_a_gpu_that_is_reset_without_a_reboot_is_cut_then() -> None:
    waiting = Outcome("reset-required", (RESET,))
    seen = states(SWITCH, waiting, blocked("MigResetRequired"), WORK, Outcome("done"), may_reboot=True)
    assert seen == ["pending", "rebooting", "pending", "success"]


def test_nobody_reboots_a_node_while_a_pod_uses_it() -> None:
    both = MigChange(blocked=(RESET, Reason("MigInstanceBusy", "in use")))
    assert states(both, both, may_reboot=True) == ["pending", "..."]
    assert states(both, both) == ["pending", "failed"]


def test_the_same_value_and_its_removal_do_nothing_and_its_return_begins_anew() -> None:
    ended = advance(heed(Attempt(), "all-balanced", "", 0.0), UNKNOWN, 0.0)
    assert heed(ended, "all-balanced", "failed", 5.0) == ended
    removed = heed(ended, "", "failed", 5.0)
    assert (removed.open, removed.state) == (False, "failed")
    assert heed(removed, "all-balanced", "failed", 9.0).open
    assert not heed(Attempt(), "", "success", 0.0).open


def test_the_removal_of_the_label_does_not_stop_what_has_begun() -> None:
    begun = advance(heed(Attempt(), "a", "", 0.0), WORK, 0.0)
    removed = heed(begun, "", "pending", 1.0)
    assert advance(removed, Outcome("done"), 2.0).state == "success"


def test_a_new_value_takes_the_place_of_one_that_waits_and_has_its_own_deadline() -> None:
    waits = advance(heed(Attempt(), "a", "", 0.0), WORK, 0.0)
    other = heed(waits, "b", "pending", 100.0)
    assert (other.config, other.state, other.deadline) == ("b", "pending", 100.0 + PENDING_S)


def test_what_hangs_is_failed_at_its_deadline_and_a_late_end_is_still_told() -> None:
    begun = advance(heed(Attempt(), "a", "", 0.0), WORK, 0.0)
    assert advance(begun, None, PENDING_S - 1).open
    late = advance(begun, None, PENDING_S)
    assert (late.state, late.reasons[0].code) == ("failed", "MigDeadlinePassed")
    assert advance(late, WORK, PENDING_S + 1) == late
    assert advance(late, Outcome("done"), PENDING_S + 2).state == "success"
    assert advance(late, Outcome("blocked"), PENDING_S + 2).state == "failed"


def test_the_reasons_for_waiting_are_told_when_time_is_up() -> None:
    busy = blocked("MigInstanceBusy")
    attempt = advance(advance(heed(Attempt(), "a", "", 0.0), busy, 0.0), busy, 1.0)
    late = advance(attempt, busy, PENDING_S)
    assert [reason.code for reason in late.reasons] == ["MigDeadlinePassed", "MigInstanceBusy"]


def test_no_state_but_an_end_lasts_longer_than_its_deadline_whatever_is_found() -> None:
    findings: list[Finding] = [
        None, WORK, SWITCH, UNFIT, *map(blocked, ("MigInstanceBusy", "MigGpuLost", "MigResetRequired")),
        Outcome("blocked", (RESET,)), Outcome("reset-required", (RESET,)), Outcome("failed"),
    ]  # fmt: skip
    longest = 0.0
    for seed in range(2_000):
        draw = random.Random(seed)
        attempt, now, since = heed(Attempt(), "a", draw.choice(("", "rebooting")), 0.0), 0.0, 0.0
        for _ in range(30):
            now += draw.choice((1.0, 60.0, 600.0))
            after = advance(attempt, draw.choice(findings), now, may_reboot=draw.random() < 0.7)
            if after.state != attempt.state:
                since = now
            attempt = after
            if attempt.open:
                limit = REBOOTING_S if attempt.state == "rebooting" else PENDING_S
                assert now - since < limit, seed
                longest = max(longest, now - since)
            assert {reason.code for reason in attempt.reasons} <= set(CODES)
    assert longest > 0.5 * REBOOTING_S


def test_a_state_may_be_pending_for_less_than_ten_minutes() -> None:
    assert PENDING_S < 600.0
