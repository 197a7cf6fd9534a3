"""Which GPUs of a node are too sick for new pods, and when they are well again.

Three things make a GPU sick: an XID that means the GPU itself needs help, the driver's own verdict (the
recovery action, NVML field 230), or a driver that gets no answer from it. XIDs that a program causes, and
faults that the GPU heals by itself, make nothing sick. An illness is of the whole GPU: every replica and MIG
instance on it stops being given out.

The driver's verdict is worth more than any table. Where the driver gives one, a GPU is well as soon as the
verdict has said so for `CALM_S` on end; where it gives none (before R565), a sick GPU stays sick until it was
reset, which shows as a driver that had lost it and found it again.
Source: NVIDIA's Xid catalogue (the action that it calls immediate), NVML's recovery actions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from gpufleet.devices.backend import Event

CALM_S: Final = 5.0

# XID  what happened, in a user's words; the immediate action is a reset of the GPU or a restart of its host
SERIOUS_XIDS: Final[Mapping[int, str]] = {
    46:  "the GPU has stopped processing",
    48:  "uncorrectable memory error",
    62:  "the power management unit has halted",
    64:  "a faulty memory row could not be remapped",
    74:  "NVLink error",
    79:  "the GPU has fallen off the bus",
    95:  "uncontained memory error",
    110: "security fault",
    119: "the GPU system processor does not answer",
    120: "the GPU system processor has failed",
    136: "an NVLink could not be trained",
    140: "uncorrectable memory error that no remap heals",
    143: "the GPU could not be initialised",
    155: "an NVLink is down",
    156: "a part of the GPU is being retired",
    158: "fatal timeout",
    167: "fatal PCIe timeout",
    169: "the security engine has halted",
}  # fmt: skip
"""XIDs after which a GPU is of no use to a new pod."""

VERDICTS: Final[Mapping[int, str]] = {
    1: "GpuResetRequired",
    2: "NodeRebootRequired",
    3: "DrainPeersRequired",
    4: "DrainAndResetRequired",
    5: "ImexRecoveryRequired",
    6: "BusResetRequired",
    7: "SystemRebootRequired",
}
"""Reasons for the driver's recovery actions."""


class Reading(msgspec.Struct, frozen=True):
    """What the driver says of a GPU now: its recovery action (None: it knows none), and `lost`: why it gets
    no answer from it; empty while it does. `answered` is False where the recovery action could not be asked.
    """

    verdict: int | None = None
    lost: str = ""
    answered: bool = True


class Illness(msgspec.Struct, frozen=True):
    """Why a GPU is sick (`Xid79`, `GpuResetRequired`, `GpuLost`) and in words, and since when.

    `calm_since` is since when the driver's verdict has been that nothing has to be done (None: it is not),
    `lost` whether the driver had lost the GPU when it was last asked.
    """

    reason: str
    message: str
    since: float
    calm_since: float | None = None
    lost: bool = False


Health = Mapping[str, Illness]
"""The sick GPUs of a node by uuid."""


def observe(health: Health, events: Iterable[Event], readings: Mapping[str, Reading], now: float) -> Health:
    """The health after the events that came and the readings of now; a GPU without a reading is unknown.

    `now` may not go back. The first reason of an illness is kept until the GPU is well.
    """
    signs = _signs(events)
    found: dict[str, Illness] = {}
    for uuid, reading in readings.items():
        illness = _next(health.get(uuid), [*signs.get(uuid, ()), *_verdict(reading)], reading, now)
        if illness is not None:
            found[uuid] = illness
    return found


def notice(health: Health, events: Iterable[Event], uuids: Collection[str], now: float) -> Health:
    """The health after events alone, before the driver is asked what it says of the GPUs `uuids`: what the
    events call sick is sick, and nothing is well.
    """
    found = dict(health)
    for uuid, signs in _signs(events).items():
        if uuid in uuids:
            found[uuid] = _ill(health.get(uuid), signs, now, lost=uuid in health and health[uuid].lost)
    return found


def _signs(events: Iterable[Event]) -> dict[str, list[tuple[str, str]]]:
    signs: dict[str, list[tuple[str, str]]] = {}
    for event in events:
        if event.kind == "xid" and event.code in SERIOUS_XIDS:
            signs.setdefault(event.uuid, []).append((f"Xid{event.code}", SERIOUS_XIDS[event.code]))
        elif event.kind == "unavailable":
            signs.setdefault(event.uuid, []).append(("GpuUnavailable", "the driver calls it unavailable"))
        elif event.kind == "recovery":
            signs.setdefault(event.uuid, []).extend(_verdict(Reading(event.code)))
    return signs


def _verdict(reading: Reading) -> list[tuple[str, str]]:
    signs = []
    if reading.verdict:
        known = VERDICTS.get(reading.verdict, f"RecoveryAction{reading.verdict}")
        signs.append((known, "the driver asks for it"))
    if reading.lost:
        signs.append(("GpuLost", reading.lost))
    return signs


def _next(
    before: Illness | None, signs: list[tuple[str, str]], reading: Reading, now: float
) -> Illness | None:
    if signs:
        calm_since = now if reading.verdict == 0 else None
        return _ill(before, signs, now, lost=bool(reading.lost), calm_since=calm_since)
    if before is None:
        return None
    if reading.answered and before.lost:
        return None  # the driver has found it again: it was reset
    if reading.verdict != 0:
        return msgspec.structs.replace(before, calm_since=None)
    calm_since = now if before.calm_since is None else before.calm_since
    return None if now - calm_since >= CALM_S else msgspec.structs.replace(before, calm_since=calm_since)


def _ill(
    before: Illness | None,
    signs: list[tuple[str, str]],
    now: float,
    *,
    lost: bool,
    calm_since: float | None = None,
) -> Illness:
    if before is not None:
        return msgspec.structs.replace(before, calm_since=calm_since, lost=lost)
    reason, message = signs[0]
    return Illness(reason, message, now, calm_since, lost)
