"""The scheduler's picks: which of them answers a question of the kubelet that names no pod."""

from __future__ import annotations

from itertools import permutations

from gpufleet.devices.picks import Pick, Picks, swapped

GPU = "nvidia.com/gpu"


def pick(uid: str, *devices: str, resource: str = GPU) -> Pick:
    return Pick(uid, "main", resource, devices)


def waiting(*picks: Pick) -> Picks:
    return Picks().bound(picks)


def test_the_pod_that_was_bound_first_is_answered_first() -> None:
    picks = waiting(pick("a", "GPU-2"), pick("b", "GPU-1"))
    assert picks.answer(GPU, ["GPU-1", "GPU-2"], [], 1) == ("GPU-2",)


def test_a_pick_answers_only_for_its_resource_and_count() -> None:
    picks = waiting(pick("a", "MIG-1", resource="nvidia.com/mig-1g.10gb"), pick("b", "GPU-1", "GPU-2"))
    assert picks.answer(GPU, ["GPU-1", "GPU-2"], [], 1) is None
    assert picks.answer(GPU, ["GPU-3", "GPU-2", "GPU-1"], [], 2) == ("GPU-1", "GPU-2")


def test_a_pick_with_a_device_that_is_not_free_is_passed_over() -> None:
    picks = waiting(pick("a", "GPU-1", "GPU-2"), pick("b", "GPU-3", "GPU-4"))
    assert picks.answer(GPU, ["GPU-2", "GPU-3", "GPU-4"], [], 2) == ("GPU-3", "GPU-4")


def test_what_must_be_included_has_to_be_of_the_pick() -> None:
    picks = waiting(pick("a", "GPU-1", "GPU-2"))
    assert picks.answer(GPU, ["GPU-1"], ["GPU-2"], 2) == ("GPU-1", "GPU-2")
    assert picks.answer(GPU, ["GPU-1", "GPU-2"], ["GPU-3"], 2) is None


def test_a_picked_gpu_that_is_shared_is_any_free_replica_of_it() -> None:
    picks = waiting(pick("a", "GPU-1", "GPU-2"))
    assert picks.answer(GPU, ["GPU-2::4", "GPU-1::7", "GPU-2::5"], [], 2) == ("GPU-1::7", "GPU-2::4")


def test_a_pick_may_name_the_replica_itself() -> None:
    assert waiting(pick("a", "GPU-1::3")).answer(GPU, ["GPU-1::0", "GPU-1::3"], [], 1) == ("GPU-1::3",)


def test_two_replicas_of_one_gpu_are_two_ids() -> None:
    picks = waiting(pick("a", "GPU-1", "GPU-1"))
    assert picks.answer(GPU, ["GPU-1::0", "GPU-1::1"], [], 2) == ("GPU-1::0", "GPU-1::1")
    assert picks.answer(GPU, ["GPU-1::0"], [], 2) is None


def test_an_allocation_uses_up_the_first_pick_that_it_is_and_the_next_question_gets_the_next() -> None:
    picks = waiting(pick("a", "GPU-1"), pick("b", "GPU-2"), pick("c", "GPU-1"))
    picks = picks.used(GPU, ["GPU-1::5"])
    assert [one.uid for one in picks.waiting] == ["b", "c"]
    assert [one.uid for one in picks.taken] == ["a"]
    assert picks.used(GPU, ["GPU-9"]) == picks
    assert picks.used("nvidia.com/gpu.shared", ["GPU-2"]) == picks


def test_a_pod_that_is_gone_waits_for_nothing() -> None:
    picks = waiting(pick("a", "GPU-1"), pick("b", "GPU-2")).bound([pick("a", "GPU-3")]).gone("a")
    assert [one.uid for one in picks.waiting] == ["b"]


def test_a_confirmed_pod_has_no_pick_any_more() -> None:
    picks = waiting(pick("a", "GPU-1"), pick("b", "GPU-2")).used(GPU, ["GPU-1"])
    assert picks.confirmed("a", "main", GPU, ["GPU-1"]) == waiting(pick("b", "GPU-2"))


def test_a_pod_that_got_devices_that_were_nobodys_has_no_pick_any_more() -> None:
    picks = waiting(pick("a", "GPU-1"), pick("b", "GPU-2"))
    assert picks.confirmed("a", "main", GPU, ["GPU-3"]) == waiting(pick("b", "GPU-2"))


def test_a_pod_that_came_out_of_turn_leaves_its_pick_to_the_one_whose_devices_it_got() -> None:
    picks = waiting(pick("a", "GPU-1"), pick("b", "GPU-2"), pick("c", "GPU-3"))
    picks = picks.used(GPU, ["GPU-1"]).confirmed("b", "main", GPU, ["GPU-1"])
    assert picks == waiting(pick("a", "GPU-2"), pick("c", "GPU-3"))
    assert picks.answer(GPU, ["GPU-2", "GPU-3"], [], 1) == ("GPU-2",)


def test_three_pods_that_got_each_others_devices_leave_no_pick_behind_in_whatever_order_they_confirm() -> (
    None
):
    got = {"a": "GPU-2", "b": "GPU-3", "c": "GPU-1"}
    for order in permutations(got):
        picks = waiting(pick("a", "GPU-1"), pick("b", "GPU-2"), pick("c", "GPU-3"), pick("d", "GPU-4"))
        for device in got.values():
            picks = picks.used(GPU, [device])
        for uid in order:
            picks = picks.confirmed(uid, "main", GPU, [got[uid]])
        assert picks == waiting(pick("d", "GPU-4"))


def test_replicas_of_one_gpu_are_confirmed_for_their_own_pod() -> None:
    picks = waiting(pick("a", "GPU-1"), pick("b", "GPU-1")).used(GPU, ["GPU-1::0"]).used(GPU, ["GPU-1::1"])
    assert [one.uid for one in picks.confirmed("b", "main", GPU, ["GPU-1::1"]).taken] == ["a"]


def test_what_pods_were_promised_is_left_to_them_while_there_is_enough_else() -> None:
    picks = waiting(pick("a", "GPU-1"))
    assert picks.spare(GPU, ["GPU-1", "GPU-2", "GPU-3"], 2) == ("GPU-2", "GPU-3")
    assert picks.spare(GPU, ["GPU-1", "GPU-2", "GPU-3"], 3) == ("GPU-1", "GPU-2", "GPU-3")
    assert picks.spare(GPU, ["GPU-1::0", "GPU-1::1", "GPU-2::0"], 2) == ("GPU-1::1", "GPU-2::0")


def test_other_devices_are_a_swap_and_other_replicas_of_them_are_not() -> None:
    one = pick("a", "GPU-1", "GPU-2")
    assert not swapped(one, ["GPU-2::1", "GPU-1::9"])
    assert swapped(one, ["GPU-1", "GPU-3"])
    assert swapped(one, ["GPU-1", "GPU-1"])
    assert swapped(one, ["GPU-1"])
