"""Which attempt of a container `logs` shows, by a kubelet's rule."""

from __future__ import annotations

import pytest

from gpufleet.local.simnodes.endpoint import attempt_shown
from gpufleet.local.simnodes.podstate import ENDED, RUNNING, STARTING, STOPPING, WAITING, Ended, Run


def run(state: str, attempt: int, ended: int | None) -> Run:
    last = None if ended is None else Ended(1, "Error", 0.0, 1.0, ended)
    return Run("main", "app", state, attempt=attempt, last=last)


@pytest.mark.parametrize(
    ("what", "now", "previous"),
    [
        (run(WAITING, 0, None), None, None),
        (run(STARTING, 0, None), None, None),
        (run(RUNNING, 0, None), 0, None),
        (run(STOPPING, 0, None), 0, None),
        (run(ENDED, 0, 0), 0, None),
        (run(WAITING, 0, 0), 0, 0),
        (run(STARTING, 1, 0), 0, 0),
        (run(RUNNING, 1, 0), 1, 0),
        (run(WAITING, 1, 1), 1, 1),
        (run(RUNNING, 2, 1), 2, 1),
        (run(ENDED, 2, 2), 2, 1),
    ],
)
def test_logs_show_the_newest_attempt_and_previous_the_one_before(
    what: Run, now: int | None, previous: int | None
) -> None:
    assert attempt_shown(what, previous=False) == now
    assert attempt_shown(what, previous=True) == previous
