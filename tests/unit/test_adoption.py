"""A pod whose status was written is read back as it was, after a crash too."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.lives import EVENTS, SIDECAR, Life, Runtime, two_containers
from tests.unit.simnode_pods import as_written, container, pod

from gpufleet.local.simnodes.adoption import adopt
from gpufleet.local.simnodes.podstate import Recorded, phase_of


def test_an_adopted_pod_keeps_running_containers_start_times_and_restart_counts() -> None:
    life = Life(pod(inits=[container("i"), container("side", **SIDECAR)], containers=two_containers())).tell(
        Recorded()
    )
    life.up("i").exit("i").up("side").up("a", "b").exit("b", 1).up("b")
    written = as_written(life.run, life.now)
    back = Life(written, adopt(written, life.now + 50, 10.0)).tell(Recorded())
    assert back.out == ()
    assert back.phase == "Running"
    assert (back.run.accepted_at, back.run.address) == (life.run.accepted_at, life.run.address)
    assert [(r.name, r.state, r.attempt, int(r.started_at)) for r in back.run.runs if r.role != "init"] == [
        (r.name, r.state, r.attempt, int(r.started_at)) for r in life.run.runs if r.role != "init"
    ]


def test_an_adopted_pod_that_is_being_deleted_goes_on_ending() -> None:
    life = Life(pod()).tell(Recorded()).up("main")
    meta = {"deletionTimestamp": "2030-01-01T00:00:00Z", "deletionGracePeriodSeconds": 7}
    dying = msgspec.structs.replace(pod(metadata=meta), status=as_written(life.run, life.now).status)
    assert Life(dying, adopt(dying, life.now, 10.0)).tell(Recorded()).stops == [("main", 7.0)]


@settings(max_examples=300)
@given(st.sampled_from(["Always", "OnFailure", "Never"]), st.lists(EVENTS, max_size=40))
def test_whatever_was_written_is_read_back_after_a_crash(
    policy: str, script: list[tuple[str, str, Any]]
) -> None:
    inits = [container("i"), container("side", **SIDECAR)]
    runtime = Runtime(Life(pod(inits=inits, containers=two_containers(), restartPolicy=policy)))
    for kind, name, detail in script:
        event = runtime.event(kind, name, detail)
        if event is not None:
            runtime.tell(event, 100.0 if kind == "tick" else 0.1)
    run, now = runtime.life.run, runtime.life.now
    back = adopt(as_written(run, now), now, 10.0)
    assert back.over == run.over
    assert not run.over or phase_of(back) == phase_of(run)
    for before, after in zip(run.runs, back.runs, strict=True):
        assert after.restarts == before.restarts
        assert after.ready == before.ready or before.role == "init"
        if before.state == "running":
            assert (after.state, after.started) == ("running", before.started or before.role == "init")
        assert after.done == before.done
