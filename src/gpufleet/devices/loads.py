"""How busy a simulated GPU is: a smooth curve that needs no ticking.

Utilisation, memory and heat (0..1) go to their targets by an exponential each, and utilisation has a small
ripple, whose phase follows from the GPU's uuid. Every value at a time, and the time spent busy until then, is
a closed formula of where the curve was last turned, so it does not matter how often one looks.
"""

from __future__ import annotations

import math
import uuid as uuids

import msgspec

_NAMESPACE = uuids.UUID("6a3b1a52-3c64-5d0f-9f0e-6f70756c6565")
_UTIL_SECONDS, _MEMORY_SECONDS, _HEAT_SECONDS = 4.0, 2.0, 60.0
_BUSY = 0.94
_RIPPLE, _RIPPLE_SECONDS = 0.05, 11.0
_BREEZE_C, _BREEZE_SECONDS = 2.0, 37.0
_IDLE_C, _HOT_C = 31.0, 43.0
_IDLE_POWER, _WORK_POWER = 0.1, 0.9
_SETTLED = 0.03


class Load(msgspec.Struct, frozen=True):
    """Levels (0..1) at the time `since`, where they go from there, and the seconds of full load until then.

    `phase` (radians) shifts the ripple, so that GPUs do not move in step.
    """

    util: float = 0.0
    memory: float = 0.0
    heat: float = 0.0
    util_target: float = 0.0
    memory_target: float = 0.0
    since: float = 0.0
    phase: float = 0.0
    busy_s: float = 0.0

    def at(self, now: float) -> Load:
        """The same curve, written from a later time on."""
        elapsed = max(0.0, now - self.since)
        return msgspec.structs.replace(
            self,
            util=_towards(self.util, self.util_target, elapsed / _UTIL_SECONDS),
            memory=_towards(self.memory, self.memory_target, elapsed / _MEMORY_SECONDS),
            heat=_towards(self.heat, self.util_target, elapsed / _HEAT_SECONDS),
            since=max(now, self.since),
            busy_s=self.busy_seconds(now),
        )

    def turned(self, now: float, util: float, memory: float) -> Load:
        """The curve with new targets (0..1) from a time on; the same one when these are its targets."""
        if (util, memory) == (self.util_target, self.memory_target):
            return self
        return msgspec.structs.replace(self.at(now), util_target=util, memory_target=memory)

    def utilisation(self, now: float) -> float:
        """Part of the GPU that works (0..1) at a time."""
        level = _towards(self.util, self.util_target, max(0.0, now - self.since) / _UTIL_SECONDS)
        return _BUSY * level * (1 + _RIPPLE * math.sin(now / _RIPPLE_SECONDS + self.phase))

    def busy_seconds(self, now: float) -> float:
        """The integral of `utilisation` until a time, in seconds."""
        elapsed = max(0.0, now - self.since)
        step = self.util - self.util_target
        faded = math.exp(-elapsed / _UTIL_SECONDS)
        w, start = 1 / _RIPPLE_SECONDS, self.since / _RIPPLE_SECONDS + self.phase
        end = start + w * elapsed
        level = self.util_target * elapsed + step * _UTIL_SECONDS * (1 - faded)
        held = self.util_target * (math.cos(start) - math.cos(end)) / w
        k = 1 / _UTIL_SECONDS
        fading = (
            step
            * ((k * math.sin(start) + w * math.cos(start)) - faded * (k * math.sin(end) + w * math.cos(end)))
            / (k * k + w * w)
        )
        return self.busy_s + _BUSY * (level + _RIPPLE * (held + fading))

    def temperature_c(self, now: float) -> float:
        """Degrees Celsius of the GPU at a time."""
        breeze = _BREEZE_C * math.sin(now / _BREEZE_SECONDS + self.phase)
        return _IDLE_C + _HOT_C * self.at(now).heat + breeze

    def settled(self, now: float) -> bool:
        """Whether utilisation and memory are where they go; heat follows for minutes."""
        later = self.at(now)
        gaps = (later.util - later.util_target, later.memory - later.memory_target)
        return max(map(abs, gaps)) < _SETTLED


def power_w(limit_w: float, utilisation: float) -> float:
    """Watts of a GPU with a power limit, linear in its utilisation (0..1)."""
    idle = limit_w * _IDLE_POWER
    return idle + (limit_w - idle) * _WORK_POWER * utilisation


def stable_uuid(*parts: object) -> uuids.UUID:
    """A uuid that follows from names and numbers: the same parts, the same uuid."""
    return uuids.uuid5(_NAMESPACE, "/".join(str(part) for part in parts))


def phase_of(uuid: str) -> float:
    """The phase of a GPU's ripple, from its uuid (`GPU-...`)."""
    return (int(uuid[-6:], 16) % 628) / 100


def _towards(level: float, target: float, elapsed: float) -> float:
    return target + (level - target) * math.exp(-elapsed)
