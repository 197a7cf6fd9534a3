"""Reports about pending pods: written when they say something new, in order, the newest only."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from tests.unit.fleets import pod

from gpufleet.fleet.plans import Unschedulable
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.reasons import Reason
from gpufleet.scheduling.reports import PASSING_SECONDS, SAME_CODES_SECONDS, Report, Reports

T = TypeVar("T")


def report(*codes: str, about: Pod | None = None, text: str = "text", helped: bool = True) -> Report:
    reasons = tuple(Reason(code, text) for code in codes)
    return Report.of(Unschedulable(about or pod("p"), reasons, helped), 3)


def run(story: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(10):
            return await story

    return asyncio.run(bounded())


async def nothing_comes(reports: Reports) -> bool:
    try:
        async with asyncio.timeout(0.02):
            await reports.get()
    except TimeoutError:
        return True
    return False


async def written(reports: Reports, now: float) -> Report:
    found = await reports.get(now)
    reports.done(found, written=True)
    return found


def test_the_standard_reason_says_whether_new_nodes_could_help() -> None:
    helped = report("InsufficientResource", "NoVictims")
    assert (helped.code, helped.reason) == ("InsufficientResource", "Unschedulable")
    assert helped.codes == ("InsufficientResource", "NoVictims")
    stuck = report("GangIncomplete", helped=False)
    assert (stuck.code, stuck.reason) == ("GangIncomplete", "GangIncomplete")


def test_a_report_is_written_once() -> None:
    async def story() -> None:
        reports = Reports()
        reports.add(report("A"), 0.0)
        assert (await written(reports, 0.0)).codes == ("A",)
        reports.add(report("A"), 1.0)
        assert await nothing_comes(reports)

    run(story())


def test_new_codes_are_written_at_once() -> None:
    async def story() -> None:
        reports = Reports()
        reports.add(report("A"), 0.0)
        await written(reports, 0.0)
        reports.add(report("A", "B"), 0.1)
        assert (await written(reports, 0.1)).codes == ("A", "B")

    run(story())


def test_new_numbers_wait_a_while() -> None:
    async def story() -> None:
        reports = Reports()
        reports.add(report("A", text="3 nodes"), 0.0)
        await written(reports, 0.0)
        reports.add(report("A", text="4 nodes"), 1.0)
        assert await nothing_comes(reports)
        reports.add(report("A", text="5 nodes"), SAME_CODES_SECONDS)
        assert "5 nodes" in (await written(reports, SAME_CODES_SECONDS)).message

    run(story())


def test_what_should_pass_by_itself_is_told_when_it_lasts() -> None:
    async def story() -> None:
        reports = Reports()
        for now in (0.0, 1.0, PASSING_SECONDS - 0.1):
            reports.add(report("WaitingForDevices"), now)
            assert await nothing_comes(reports)
        reports.add(report("WaitingForDevices", text="for another pod"), PASSING_SECONDS)
        assert "another pod" in (await written(reports, PASSING_SECONDS)).message

    run(story())


def test_what_has_passed_and_comes_again_is_not_told_at_once() -> None:
    async def story() -> None:
        reports = Reports()
        reports.add(report("WaitingForDevices"), 0.0)
        reports.add(report("A"), 1.0)
        await written(reports, 1.0)
        reports.add(report("WaitingForDevices"), PASSING_SECONDS)
        assert await nothing_comes(reports)

    run(story())


def test_what_has_passed_takes_back_an_older_report_that_waits() -> None:
    """The pod fits now; that it did not a moment ago is no news any more."""

    async def story() -> None:
        reports = Reports()
        reports.add(report("A"), 0.0)
        reports.add(report("WaitingForDevices"), 0.1)
        assert await nothing_comes(reports)

    run(story())


def test_of_several_reports_that_wait_the_newest_is_written() -> None:
    async def story() -> None:
        reports = Reports()
        for code in "ABC":
            reports.add(report(code), 0.0)
        assert (await written(reports, 0.0)).codes == ("C",)
        assert await nothing_comes(reports)

    run(story())


def test_a_report_that_says_again_what_stands_there_takes_back_one_that_waits() -> None:
    """The state went from A to B and back while nobody had time to write B."""

    async def story() -> None:
        reports = Reports()
        reports.add(report("A"), 0.0)
        await written(reports, 0.0)
        reports.add(report("B"), 1.0)
        reports.add(report("A"), 1.1)
        assert await nothing_comes(reports)

    run(story())


def test_another_pod_of_the_same_name_has_a_story_of_its_own() -> None:
    async def story() -> None:
        reports = Reports()
        reports.add(report("A"), 0.0)
        first = await written(reports, 0.0)
        again = msgspec.structs.replace(pod("p"), uid="another")
        assert reports.was_reported(first.pod)
        assert not reports.was_reported(again)
        reports.add(report("A", about=again), 0.1)
        assert (await written(reports, 0.1)).pod.uid == "another"

    run(story())


def test_a_pods_reports_are_written_one_after_the_other() -> None:
    async def story() -> None:
        reports = Reports()
        reports.add(report("A"), 0.0)
        first = await reports.get(0.0)
        reports.add(report("B"), 0.1)
        assert await nothing_comes(reports)
        reports.add(report("C", about=pod("other")), 0.1)
        assert (await reports.get(0.1)).codes == ("C",)
        reports.done(first, written=True)
        assert (await reports.get(0.2)).codes == ("B",)

    run(story())


def test_a_report_whose_write_failed_may_be_written_again() -> None:
    async def story() -> None:
        reports = Reports()
        reports.add(report("A"), 0.0)
        reports.done(await reports.get(0.0), written=False)
        reports.add(report("A"), 0.1)
        assert (await written(reports, 0.1)).codes == ("A",)

    run(story())


def test_after_a_report_whose_write_failed_the_one_before_it_stands() -> None:
    async def story() -> None:
        reports = Reports()
        reports.add(report("A"), 0.0)
        await written(reports, 0.0)
        reports.add(report("B"), 0.1)
        failed = await reports.get(0.1)
        assert reports.follows_another(failed)
        reports.done(failed, written=False)
        assert reports.was_reported(failed.pod)
        reports.add(report("A"), 0.2)
        assert await nothing_comes(reports)
        reports.add(report("B"), 0.3)
        assert (await written(reports, 0.3)).codes == ("B",)

    run(story())


def test_withdrawing_waits_for_the_write_that_is_under_way() -> None:
    async def story() -> list[str]:
        reports, order = Reports(), []
        reports.add(report("A"), 0.0)
        first = await reports.get(0.0)
        reports.add(report("B"), 0.1)

        async def withdraw() -> None:
            await reports.withdraw(first.pod.key)
            order.append("withdrawn")

        task = asyncio.create_task(withdraw())
        await asyncio.sleep(0.01)
        order.append("written")
        reports.done(first, written=True)
        await task
        assert await nothing_comes(reports)
        return order

    assert run(story()) == ["written", "withdrawn"]


def test_what_is_known_about_pods_that_are_gone_is_forgotten() -> None:
    async def story() -> None:
        reports = Reports()
        reports.add(report("A"), 0.0)
        await written(reports, 0.0)
        reports.add(report("B"), 0.1)
        reports.keep(set())
        assert await nothing_comes(reports)
        assert not reports.was_reported(pod("p"))

    run(story())


def test_the_binding_closes_the_story() -> None:
    async def story() -> None:
        reports = Reports()
        reports.add(report("A"), 0.0)
        await written(reports, 0.0)
        assert reports.was_reported(pod("p"))
        reports.add(Report.of_binding(pod("p"), "assigned to a"), 0.1)
        closing = await written(reports, 0.1)
        assert (closing.bound, closing.code) == (True, "Bound")
        assert not reports.was_reported(pod("p"))

    run(story())
