"""A trial leaves no trace when it is rolled back, and holds room without giving it away twice."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import GPU, HOST, ZONE, gang, ledger, near, node, pod
from tests.unit.random_fleets import examples, fleets, instance, templates

from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.ledger import Ledger
from gpufleet.scheduling.search import Search
from gpufleet.scheduling.trial import Trial

STEPS = st.lists(
    st.tuples(st.sampled_from(["place", "hold", "end", "mark", "rollback"]), st.integers(0, 99)), max_size=12
)


def step(trial: Trial, pool: list[Pod], marks: list[int], what: str, number: int) -> None:
    """One change of a trial: pods of the pool are placed wherever they are allowed to be, or not."""
    node = trial.nodes[number % len(trial.nodes)]
    running = [p for p in trial.ledger.accounts[node].pods.values() if p.node and not p.terminating]
    placed = {key for account in trial.ledger.accounts.values() for key in account.pods}
    free = [p for p in pool if p.key not in placed]
    match what:
        case "place" if free:
            trial.place(free[number % len(free)], node)
        case "hold" if free:
            trial.hold(free[number % len(free)], node)
        case "end" if running:
            trial.end(node, [running[number % len(running)].key])
        case "mark":
            marks.append(trial.mark())
        case "rollback" if marks:
            trial.rollback(marks.pop())


@examples(40)
@given(fleets(), st.lists(templates(), min_size=1, max_size=3), STEPS)
def test_a_rollback_leaves_the_fleet_as_it_was(
    snapshot: Snapshot, more: list[Pod], steps: list[tuple[str, int]]
) -> None:
    trial = Trial(Ledger.build(snapshot))
    pool = [instance(template, f"x{index}") for index, template in enumerate(more)]
    start, before = trial.mark(), dict(trial.ledger.accounts)
    marks: list[int] = []
    for what, number in steps:
        step(trial, pool, marks, what, number)
    trial.rollback(start)
    assert trial.ledger.accounts == before
    assert all(trial.held_from(p) is None for p in pool)


@examples(40)
@given(fleets(), st.lists(templates(), min_size=1, max_size=2), STEPS)
def test_shared_searches_answer_as_new_ones_after_any_changes(
    snapshot: Snapshot, more: list[Pod], steps: list[tuple[str, int]]
) -> None:
    """Whatever was placed, held, ended and undone, and whoever asked before."""
    pool = [instance(template, f"x{index}-{copy}") for index, template in enumerate(more) for copy in "ab"]
    unbound = {**snapshot.unbound, **{asker.key: asker for asker in pool}}
    trial = Trial(Ledger.build(msgspec.structs.replace(snapshot, unbound=unbound)))
    marks: list[int] = []
    for what, number in [*steps, ("", 0)]:
        for asker in pool:
            shared, fresh = trial.search(asker), Search(asker, trial.ledger, lambda: firm(trial))
            assert shared.best() == fresh.best()
            assert shared.best(certain=False) == fresh.best(certain=False)
            assert dict(shared.blocks()) == dict(fresh.blocks())
            assert shared.reasons() == fresh.reasons()
        step(trial, pool, marks, what, number)


def firm(trial: Trial) -> Ledger:
    """The ledger without pods that only have room held, found by their place in the trial's journal."""
    ledger = trial.ledger.fork()
    for name, keys in trial._held.items():
        ledger.remove(name, keys)
    return ledger


def test_room_that_is_held_is_nobody_elses() -> None:
    """The victim holds its GPUs until it is gone, and what it leaves over is free only then."""
    trial = Trial(ledger([node("a", gpus=8)], [pod("victim", gpus=8, node="a")]))
    trial.end("a", ["default/victim"])
    trial.hold(pod("new", gpus=1), "a")
    assert trial.search(pod("small", gpus=1)).best() is None
    assert trial.held_from(pod("small", gpus=1)) is None


def test_free_room_that_is_held_is_named() -> None:
    trial = Trial(ledger([node("a", gpus=4), node("b", gpus=2)]))
    trial.hold(pod("new", gpus=4), "a")
    assert trial.search(pod("other", gpus=4)).best() is None
    assert trial.held_from(pod("other", gpus=4)) == "a"
    assert trial.held_from(pod("large", gpus=8)) is None


def test_nobody_is_bound_near_a_pod_for_which_room_is_only_held() -> None:
    trial = Trial(ledger([node("a", zone="x")]))
    follower = pod("follower", affinity=[near(ZONE, app="leader")])
    trial.hold(pod("leader", labels={"app": "leader"}), "a")
    assert trial.search(follower).best() is None
    assert trial.search(follower).best(certain=False) == "a"


def test_a_pod_that_refuses_others_does_so_again_after_its_end_was_undone() -> None:
    refusing = pod("r", node="a", anti_affinity=[near(HOST, app="web")])
    trial = Trial(ledger([node("a")], [refusing]))
    web = pod("web", labels={"app": "web"})
    mark = trial.mark()
    trial.end("a", [refusing.key])
    assert trial.search(web).best() is None
    trial.rollback(mark)
    assert trial.search(web).best() is None


def test_who_refuses_others_is_heeded_from_the_moment_it_is_placed() -> None:
    trial = Trial(ledger([node("a"), node("b", unschedulable=True)]))
    web = pod("web", labels={"app": "web"})
    assert trial.search(web).best() == "a"
    trial.place(pod("r", anti_affinity=[near(HOST, app="web")]), "a")
    assert trial.search(web).best() is None
    assert trial.search(pod("db", labels={"app": "db"})).best() == "a"


def test_jobs_of_one_shape_ask_one_question_whatever_their_owners_and_labels() -> None:
    trial = Trial(ledger([node("a")]))
    jobs = [pod(f"j{i}", owner=f"job-{i}", kind="Job", labels={"job-name": f"job-{i}"}) for i in range(3)]
    assert len({trial.question(job) for job in jobs}) == 1


def test_replicas_ask_apart_from_other_replicas_and_a_lone_replica_does_not() -> None:
    first, second = ([pod(f"{o}{i}", owner=o) for i in range(2)] for o in "xy")
    lone = [pod("l1", owner="l1"), pod("l2", owner="l2")]
    trial = Trial(ledger([node("a")], [*first, *second, *lone]))
    assert len({trial.question(p) for p in (*first, *second)}) == 2
    assert len({trial.question(p) for p in lone}) == 1


def test_labels_tell_questions_apart_where_somebody_asks_for_them() -> None:
    refusing = pod("r", node="a", anti_affinity=[near(HOST, app="web")])
    trial = Trial(ledger([node("a")], [refusing]))
    one = pod("1", labels={"app": "web", "pod": "1"})
    assert trial.question(one) == trial.question(pod("2", labels={"app": "web", "pod": "2"}))
    assert trial.question(one) != trial.question(pod("3", labels={"app": "db"}))


def test_pods_with_volumes_of_their_own_ask_alone() -> None:
    trial = Trial(ledger([node("a")]))
    assert trial.question(pod("1", claims=["data"])) != trial.question(pod("2", claims=["data"]))
    assert trial.question(pod("1", inline_csi_drivers=["d"])) != trial.question(
        pod("2", inline_csi_drivers=["d"])
    )


def test_mates_are_the_pods_of_a_gang_that_stay() -> None:
    members = [pod(f"m{i}", gpus=1, node="ab"[i % 2], gang=gang("g", 3)) for i in range(3)]
    trial = Trial(ledger([node("a", gpus=8), node("b", gpus=8)], members))
    changes = {trial.gang_changes("default/g")}
    assert [p.name for p in trial.mates("default/g")] == ["m0", "m1", "m2"]
    mark = trial.mark()
    trial.end("a", ["default/m0"])
    trial.place(pod("m3", gpus=1, gang=gang("g", 3)), "b")
    assert [p.name for p in trial.mates("default/g")] == ["m1", "m2", "m3"]
    changes.add(trial.gang_changes("default/g"))
    trial.rollback(mark)
    assert [p.name for p in trial.mates("default/g")] == ["m0", "m1", "m2"]
    changes.add(trial.gang_changes("default/g"))
    assert len(changes) == 3
    assert trial.mates("default/unknown") == []


def test_a_rollback_takes_promised_volumes_back() -> None:
    trial = Trial(ledger([node("a", gpus=1)]))
    mark = trial.mark()
    trial.place(pod("p", gpus=1), "a")
    trial.ledger.promised_volumes["pv"] = "default/data"
    trial.rollback(mark)
    assert not trial.ledger.promised_volumes
    assert trial.ledger.accounts["a"].free(GPU) == 1


def test_the_ledger_that_a_trial_is_made_from_does_not_change() -> None:
    original = ledger([node("a", gpus=1)], [pod("v", gpus=1, node="a")])
    before = dict(original.accounts)
    trial = Trial(original)
    trial.end("a", ["default/v"])
    trial.hold(pod("p", gpus=1), "a")
    assert original.accounts == before
    assert msgspec.structs.asdict(original.snapshot) == msgspec.structs.asdict(trial.snapshot)
