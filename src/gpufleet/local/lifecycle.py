"""The life of one component: what may happen next, decided without a clock and without a process.

Events come in (it was started, it answered, it ended), a new `Life` comes out; the supervisor acts on what it
says. A component that keeps dying is restarted after 0.5 s, 1 s, 2 s ... 30 s; one that ran for a minute
starts over at 0.5 s, so that a crash once a day never waits.
"""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["starting", "running", "backoff", "stopped"]

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
SETTLED_S = 60.0


class Life(msgspec.Struct, frozen=True):
    """One component now. Times are seconds of a monotonic clock; `pid` is 0 while there is no process.

    `failures` counts ends in a row without a good answer, which tells what broke from what never worked;
    `answering` is what the last probe said.
    """

    state: State = "starting"
    pid: int = 0
    since: float = 0.0
    restarts: int = 0
    last_exit: int | None = None
    delay: float = 0.0
    retry_at: float = 0.0
    failures: int = 0
    answering: bool = False


def wants_start(life: Life, now: float) -> bool:
    """Whether a process should be started now (once what it depends on is there)."""
    return life.pid == 0 and life.state in ("starting", "backoff") and now >= life.retry_at


def started(life: Life, pid: int, now: float) -> Life:
    """It has a process now, new or adopted, that has not answered yet."""
    return msgspec.structs.replace(life, state="starting", pid=pid, since=now, answering=False)


def probed(life: Life, answering: bool) -> Life:
    """A probe came back. The first good answer makes a starting component running; a later bad one is only
    noted.
    """
    if life.pid == 0:
        return life
    if not answering:
        return msgspec.structs.replace(life, answering=False)
    return msgspec.structs.replace(life, state="running", answering=True, failures=0)


def exited(life: Life, code: int | None, now: float) -> Life:
    """Its process ended (`code` is None when it was not our child); when to try again."""
    settled = now - life.since >= SETTLED_S
    delay = FIRST_DELAY_S if settled or not life.delay else min(life.delay * 2, LONGEST_DELAY_S)
    return msgspec.structs.replace(
        life,
        state="backoff",
        pid=0,
        since=now,
        restarts=life.restarts + 1,
        failures=life.failures + 1,
        last_exit=code,
        delay=delay,
        retry_at=now + delay,
        answering=False,
    )


def requested(life: Life) -> Life:
    """Somebody asks for it anew: earlier ends no longer count, and without a process it may start at once."""
    fresh = msgspec.structs.replace(life, failures=0, delay=0.0)
    return fresh if life.pid else msgspec.structs.replace(fresh, state="starting", retry_at=0.0)


def stopped(life: Life, code: int | None) -> Life:
    """It was ended for good."""
    return msgspec.structs.replace(life, state="stopped", pid=0, last_exit=code, answering=False)
