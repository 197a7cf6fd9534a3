"""The labels of NVIDIA's MIG manager: `nvidia.com/mig.config` asks, `nvidia.com/mig.config.state` answers.

A new value of the label begins an attempt. One that names no config fails at once, one that is applied
already succeeds at once; otherwise the state is `pending` until the attempt ends as `success` or `failed`, or
`rebooting` where a switch of MIG mode waits for a reset and the node may be rebooted for it. The same value
again does nothing, nor does its removal (a value that comes back after that begins anew). After a reboot, as
after any start, the label is read as new; a mode that still is wrong after `rebooting` is a failure, so that
no node reboots for ever.

Unlike NVIDIA's manager, which destroys what is idle and then fails, an attempt that meets an instance in use
waits for it, and no attempt is open for longer than its deadline.
Source: mig-parted pkg/mig/reconfigure and cmd/nvidia-mig-manager.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gpufleet.devices.mig_changes import MigChange, SwitchMode
from gpufleet.devices.mig_manager import Outcome
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.reasons import Reason

CONFIG_LABEL = "nvidia.com/mig.config"
STATE_LABEL = "nvidia.com/mig.config.state"

PENDING_S = 540.0
REBOOTING_S = 1800.0

MigState = Literal["", "pending", "success", "failed", "rebooting"]

_PASSING = frozenset(("MigInstanceBusy", "MigGpuBusy", "MigGpuLost"))
"""What an attempt waits for; everything else that blocks a change stays until somebody decides otherwise."""


class Attempt(msgspec.Struct, frozen=True):
    """What the label asked last, and how far it is. `read` is the label's last value (empty: none), `config`
    the one that the attempt is for; `state` is what the state label must say (empty: as it is), `deadline` a
    time in seconds. `rebooted`: the node was rebooted for it.
    """

    read: str = ""
    config: str = ""
    state: MigState = ""
    open: bool = False
    deadline: float = 0.0
    rebooted: bool = False
    reasons: tuple[Reason, ...] = ()


Finding = MigChange | Outcome | GpufleetError | None
"""What came of looking at an attempt: what is to be done for its config, how doing it ended, why the config
cannot be applied; None for nothing but the time.
"""


def heed(attempt: Attempt, config: str, state: str, now_s: float) -> Attempt:
    """What the labels ask: `config` and `state` are their values now, empty without one."""
    if config == attempt.read:
        return attempt
    if not config:
        return msgspec.structs.replace(attempt, read="")
    shown: MigState = "pending" if attempt.open and attempt.state == "pending" else ""
    rebooted = state == "rebooting" and not attempt.config
    return Attempt(config, config, shown, open=True, deadline=now_s + PENDING_S, rebooted=rebooted)


def advance(attempt: Attempt, found: Finding, now_s: float, *, may_reboot: bool = False) -> Attempt:
    """The attempt after a finding. As long as it is open somebody must look again, at the latest at its
    deadline: resolve and plan and, in the state `pending`, carry out what is planned.
    """
    if isinstance(found, Outcome):
        return _ended(attempt, found, now_s, may_reboot)
    if not attempt.open:
        return attempt
    if now_s >= attempt.deadline:
        return _expired(attempt, attempt.reasons)
    if isinstance(found, MigChange):
        return _planned(attempt, found, now_s, may_reboot)
    if found is None or (attempt.state == "rebooting" and found.reason != "UnknownMigConfig"):
        return attempt
    if not attempt.state and found.reason != "UnknownMigConfig":
        return msgspec.structs.replace(attempt, state="pending")
    return _closed(attempt, "failed", (Reason(found.reason, found.message),))


def _planned(attempt: Attempt, change: MigChange, now_s: float, may_reboot: bool) -> Attempt:
    if change.done:
        return _closed(attempt, "success", change.reasons)
    if attempt.state == "rebooting":
        if _mode_is_wrong(change):
            return attempt
        return msgspec.structs.replace(attempt, state="pending", deadline=now_s + PENDING_S)
    if attempt.rebooted and _mode_is_wrong(change):
        text = "MIG mode is not as the config wants it after the reboot"
        return _closed(attempt, "failed", (Reason("MigResetRequired", text), *change.blocked))
    if attempt.state != "pending":
        return msgspec.structs.replace(attempt, state="pending")
    codes = {reason.code for reason in change.blocked}
    if codes == {"MigResetRequired"}:
        return _waiting_for_reset(attempt, change.blocked, now_s, may_reboot)
    if codes <= (_PASSING | {"MigResetRequired"} if may_reboot else _PASSING):
        return msgspec.structs.replace(attempt, reasons=change.blocked)
    return _closed(attempt, "failed", change.blocked)


def _ended(attempt: Attempt, outcome: Outcome, now_s: float, may_reboot: bool) -> Attempt:
    """An outcome counts even when it comes after the deadline, for it is what the GPUs are now."""
    if outcome.status == "done":
        return _closed(attempt, "success", outcome.reasons)
    if not attempt.open or outcome.status == "failed":
        return _closed(attempt, "failed", outcome.reasons)
    if now_s >= attempt.deadline:
        return _expired(attempt, outcome.reasons)
    if outcome.status == "reset-required":
        return _waiting_for_reset(attempt, outcome.reasons, now_s, may_reboot)
    return msgspec.structs.replace(attempt, reasons=outcome.reasons)


def _waiting_for_reset(
    attempt: Attempt, reasons: tuple[Reason, ...], now_s: float, may_reboot: bool
) -> Attempt:
    if not may_reboot:
        return _closed(attempt, "failed", reasons)
    if attempt.state == "rebooting":
        return attempt
    return msgspec.structs.replace(attempt, state="rebooting", deadline=now_s + REBOOTING_S, reasons=reasons)


def _mode_is_wrong(change: MigChange) -> bool:
    return any(isinstance(step, SwitchMode) and not step.cancels for step in change.steps) or any(
        reason.code in ("MigModeSwitchNotAllowed", "MigResetRequired") for reason in change.blocked
    )


def _expired(attempt: Attempt, reasons: tuple[Reason, ...]) -> Attempt:
    text = f"the config {attempt.config!r} was not applied in time"
    return _closed(attempt, "failed", (Reason("MigDeadlinePassed", text), *reasons))


def _closed(attempt: Attempt, state: MigState, reasons: tuple[Reason, ...]) -> Attempt:
    return msgspec.structs.replace(attempt, state=state, open=False, reasons=reasons)
